// Landmarks on the CPU, without the mesh: only the vertices that the chosen landmarks touch.
#pragma once

#include "landmarks_model.h"

namespace ringnet {
namespace {

// Blends `corners` neighbouring corners of one tile for `group` elements: out[b] is that element's tile, [xyz][lane].
template <class T, int corners, int group>
RN_KERNEL void blend_corners(const LandmarkTables<T>& m, const std::int32_t* vertices, const T* const* features, T* const* out) {
    constexpr int W = lanes<T>;
    const index_t row = m.lay.direction_row();
    vec<T> acc[corners][group][3] = {};
    const T* d[corners];
    RN_UNROLL for (int e = 0; e < corners; ++e) d[e] = m.directions + index_t(vertices[e]) * 3 * row;
    for (index_t k = 0; k < row; k += W) {
        RN_UNROLL for (int e = 0; e < corners; ++e) {
            const vec<T> dx = load_shared<T, true>(d[e] + k), dy = load_shared<T, true>(d[e] + row + k);
            const vec<T> dz = load_shared<T, true>(d[e] + 2 * row + k);
            RN_UNROLL for (int b = 0; b < group; ++b) {
                const vec<T> f = load(features[b] + k);
                acc[e][b][0] += dx * f;
                acc[e][b][1] += dy * f;
                acc[e][b][2] += dz * f;
            }
        }
    }
    RN_UNROLL for (int e = 0; e < corners; ++e) {
        RN_UNROLL for (int b = 0; b < group; ++b) {
            RN_UNROLL for (int c = 0; c < 3; ++c) out[b][c * W + e] = m.v_template[3 * index_t(vertices[e]) + c] + sum<T>(acc[e][b][c]);
        }
    }
}

// The other way: d_features[b] += the corners' directions times their gradients.
template <class T, int corners, int group>
RN_KERNEL void blend_corners_vjp(const LandmarkTables<T>& m, const std::int32_t* vertices, const T* const* gradient, T* const* d_features) {
    constexpr int W = lanes<T>;
    const index_t row = m.lay.direction_row();
    const T* d[corners];
    vec<T> g[corners][group][3];
    RN_UNROLL for (int e = 0; e < corners; ++e) {
        d[e] = m.directions + index_t(vertices[e]) * 3 * row;
        RN_UNROLL for (int b = 0; b < group; ++b) { RN_UNROLL for (int c = 0; c < 3; ++c) g[e][b][c] = broadcast(gradient[b][c * W + e]); }
    }
    for (index_t k = 0; k < row; k += W) {
        vec<T> acc[group];
        RN_UNROLL for (int b = 0; b < group; ++b) acc[b] = load(d_features[b] + k);
        RN_UNROLL for (int e = 0; e < corners; ++e) {
            const vec<T> dx = load(d[e] + k), dy = load(d[e] + row + k), dz = load(d[e] + 2 * row + k);
            RN_UNROLL for (int b = 0; b < group; ++b) acc[b] += dx * g[e][b][0] + (dy * g[e][b][1] + dz * g[e][b][2]);
        }
        RN_UNROLL for (int b = 0; b < group; ++b) store(d_features[b] + k, acc[b]);
    }
}

// Calls visit(corners, vertices, offset of the corner in a tile's row, tile of the element) for every corner of the chosen
// tiles [t0, t1): one by one for a group of elements, `together` at a time for a single element.
template <class T, int together, class Visit>
RN_HOST_DEVICE void each_corner(const LandmarkTables<T>& m, index_t t0, index_t t1, index_t row, const Visit& visit) {
    constexpr int W = lanes<T>, step = together < W ? together : W;
    for (index_t t = t0; t < t1; ++t) {
        // The last tile of each table is padded; whole steps of padding are left out.
        const index_t corners = t < m.lay.static_tiles ? 3 * m.lay.L - t * W : 3 * m.lay.C - (t - m.lay.static_tiles) * W;
        const std::int32_t* vertices = m.vertices + m.lay.chosen(t, row) * W;
        for (index_t l = 0; l < min_of(W, corners); l += step) visit(std::integral_constant<int, step>{}, vertices + l, t * 3 * W + l);
    }
}

// The way back through TileSkin::apply, for one element. Accumulates the gradient of its transforms over tiles, lane by lane.
template <class T>
class SkinGradient {
  public:
    static index_t size(index_t J) { return 13 * J * lanes<T>; }  // one vector per joint holds its flag
    SkinGradient(T* memory, index_t J) : sums_(memory), touched_(memory + 12 * J * lanes<T>), J_(J) { fill_zero(memory, memory + size(J)); }

    // dv = gradient of the tile's blended vertices v, where g is that of the posed ones.
    RN_HOST_DEVICE void add(const TileSkin<T>& skin, const T* transforms, const vec<T> v[3], const vec<T> g[3], vec<T> dv[3]) {
        constexpr int W = lanes<T>;
        for (int c = 0; c < 3; ++c) dv[c] = vec<T>{};
        for (std::int32_t s = 0; s < skin.count; ++s) {
            const std::int32_t j = skin.joints[s];
            const vec<T> w = load(skin.weights + s * W);
            vec<T> weighted[3], turned[3], dA[12];
            for (int c = 0; c < 3; ++c) weighted[c] = w * g[c];
            transform_point_vjp(transforms + 12 * j, weighted, turned);
            for (int c = 0; c < 3; ++c) dv[c] += turned[c];
            transform_vjp(v, weighted, dA);
            T* sums = sums_ + j * 12 * W;
            for (int i = 0; i < 12; ++i) store(sums + i * W, load(sums + i * W) + dA[i]);
            touched_[j] = T(1);
        }
    }

    // out (12 J) += the gradient of the transforms so far; starts again from zero.
    RN_HOST_DEVICE void flush(T* out) {
        constexpr int W = lanes<T>;
        for (index_t j = 0; j < J_; ++j) {
            if (touched_[j] == T(0)) continue;
            vec<T> v[12];
            T total[round_up(12, W)];
            for (int i = 0; i < 12; ++i) v[i] = load(sums_ + (12 * j + i) * W);
            sums<T>(v, total);
            for (int i = 0; i < 12; ++i) out[12 * j + i] += total[i];
            fill_zero(sums_ + 12 * j * W, sums_ + 12 * (j + 1) * W);
            touched_[j] = T(0);
        }
    }

  private:
    T *sums_, *touched_;
    index_t J_;
};

// Scratch of one thread: a group's blended corners or their gradients, one element's posed corners, gradients of features.
template <class T>
struct LandmarkScratch {
    LandmarkScratch(const LandmarkLayout<T>& lay, T* values_, double* pose_)
        : corners(lay.chosen_tiles() * 3 * lanes<T>), features(lay.direction_row()), sums(12 * lay.J), values(values_), pose(pose_, lay.J) {
    }
    static index_t size(const LandmarkLayout<T>& lay) {
        const LandmarkScratch at(lay, nullptr, nullptr);
        return (max_group + 1) * at.corners + max_group * (at.features + at.sums) + SkinGradient<T>::size(lay.J);
    }
    T* group(index_t b) const { return values + b * corners; }
    T* posed() const { return values + max_group * corners; }
    T* d_features(index_t b) const { return posed() + corners + b * features; }
    T* transform_sums(index_t b) const { return d_features(max_group) + b * sums; }
    T* transforms() const { return transform_sums(max_group); }

    index_t corners, features, sums;  // elements of each
    T* values;
    PoseScratch pose;
};

template <class T>
PoseInput<T> pose_input(const LandmarkModel<T>& m, const T* betas, const T* pose, bool axis_angle) {
    return {m.K, m.J, m.parents, m.joint_dirs, m.joint_template, betas, pose, axis_angle};
}

template <class T, int group>
void landmarks_forward_group(const LandmarksForward<T>& p, const LandmarkTables<T>& m, index_t b0, const LandmarkScratch<T>& scratch) {
    constexpr int W = lanes<T>, together = group == 1 ? 4 : 1;
    const LandmarkLayout<T>& lay = m.lay;
    const PoseScratch& s = scratch.pose;
    const T* features[group];
    T* blended[group];
    index_t rows[group];
    for (int b = 0; b < group; ++b) {
        T* state = p.state + (b0 + b) * lay.state_size(p.keep);
        // All of state is written, padding too: it is an output of the operator, and the backward pass multiplies some by zero.
        fill_zero(state + lay.F, state + lay.transforms);
        fill_zero(state + lay.transforms + 12 * lay.J, state + lay.state_size(p.keep));
        pose_forward<T>(pose_input(p.model, p.betas + (b0 + b) * p.betas_stride, p.pose + (b0 + b) * p.pose_stride, p.axis_angle), s, state,
                        1, state + lay.transforms, nullptr);
        rows[b] = lay.C > 0 ? contour_row(s.world_r + 9 * p.model.neck_joint) : 0;
        state[lay.row] = static_cast<T>(rows[b]);
        features[b] = state;
        blended[b] = p.keep ? state + lay.blended : scratch.group(b);
        if (!p.keep) fill_zero(blended[b], blended[b] + scratch.corners);
    }
    each_corner<T, together>(m, 0, lay.static_tiles, 0, [&](auto corners, const std::int32_t* vertices, index_t offset) {
        T* out[group];
        RN_UNROLL for (int b = 0; b < group; ++b) out[b] = blended[b] + offset;
        blend_corners<T, corners(), group>(m, vertices, features, out);
    });
    for (int b = 0; b < group; ++b) {
        each_corner<T, 4>(m, lay.static_tiles, lay.chosen_tiles(), rows[b],
                          [&](auto corners, const std::int32_t* vertices, index_t offset) {
                              T* out = blended[b] + offset;
                              blend_corners<T, corners(), 1>(m, vertices, features + b, &out);
                          });
        T* posed = scratch.posed();
        for (index_t t = 0; t < lay.chosen_tiles(); ++t) {
            vec<T> v[3], q[3];
            for (int c = 0; c < 3; ++c) v[c] = load(blended[b] + (3 * t + c) * W);
            m.skin(lay.chosen(t, rows[b])).apply(features[b] + lay.transforms, v, q);
            for (int c = 0; c < 3; ++c) store(posed + (3 * t + c) * W, q[c]);
        }
        const auto write = [&](T* out, const T* tiles, index_t n) {
            for (index_t i = 0; i < n; ++i)
                for (int c = 0; c < 3; ++c) {
                    T total = T(0);
                    for (index_t e = 3 * i; e < 3 * i + 3; ++e) total += tiles[(e / W * 3 + c) * W + e % W];
                    out[3 * i + c] = total;
                }
        };
        T* out = p.landmarks + (b0 + b) * 3 * (lay.C + lay.L);
        write(out, posed + lay.static_tiles * 3 * W, lay.C);
        write(out + 3 * lay.C, posed, lay.L);
    }
}

template <class T, int group>
void landmarks_backward_group(const LandmarksBackward<T>& p, const LandmarkTables<T>& m, index_t b0, const LandmarkScratch<T>& scratch) {
    constexpr int W = lanes<T>, together = group == 1 ? 4 : 1;
    const LandmarkLayout<T>& lay = m.lay;
    const PoseScratch& s = scratch.pose;
    index_t rows[group];
    for (int b = 0; b < group; ++b) {
        const T* state = p.state + (b0 + b) * lay.state_size(true);
        rows[b] = static_cast<index_t>(state[lay.row]);
        T* gradient = scratch.group(b);
        const T* g = p.grad_landmarks + (b0 + b) * p.grad_landmarks_stride[0];
        const auto spread = [&](index_t first, index_t n, T* tiles, index_t count) {
            for (index_t e = 0; e < count * W; ++e)
                for (int c = 0; c < 3; ++c)
                    tiles[(e / W * 3 + c) * W + e % W] =
                        e < 3 * n ? g[(first + e / 3) * p.grad_landmarks_stride[1] + c * p.grad_landmarks_stride[2]] : T(0);
        };
        spread(0, lay.C, gradient + lay.static_tiles * 3 * W, lay.contour_tiles);
        spread(lay.C, lay.L, gradient, lay.static_tiles);

        SkinGradient<T> skin_gradient(scratch.transforms(), lay.J);
        for (index_t t = 0; t < lay.chosen_tiles(); ++t) {
            vec<T> q[3], v[3], dv[3];
            for (int c = 0; c < 3; ++c) {
                q[c] = load(gradient + (3 * t + c) * W);
                v[c] = load(state + lay.blended + (3 * t + c) * W);
            }
            skin_gradient.add(m.skin(lay.chosen(t, rows[b])), state + lay.transforms, v, q, dv);
            for (int c = 0; c < 3; ++c) store(gradient + (3 * t + c) * W, dv[c]);
        }
        T* sums = scratch.transform_sums(b);
        fill_zero(sums, sums + 12 * lay.J);
        skin_gradient.flush(sums);
        fill_zero(scratch.d_features(b), scratch.d_features(b) + lay.direction_row());
    }
    T* d_features[group];
    for (int b = 0; b < group; ++b) d_features[b] = scratch.d_features(b);
    each_corner<T, together>(m, 0, lay.static_tiles, 0, [&](auto corners, const std::int32_t* vertices, index_t offset) {
        const T* gradient[group];
        RN_UNROLL for (int b = 0; b < group; ++b) gradient[b] = scratch.group(b) + offset;
        blend_corners_vjp<T, corners(), group>(m, vertices, gradient, d_features);
    });
    for (int b = 0; b < group; ++b) {
        each_corner<T, 4>(m, lay.static_tiles, lay.chosen_tiles(), rows[b],
                          [&](auto corners, const std::int32_t* vertices, index_t offset) {
                              const T* gradient = scratch.group(b) + offset;
                              blend_corners_vjp<T, corners(), 1>(m, vertices, &gradient, d_features + b);
                          });
        for (index_t i = 0; i < 12 * lay.J; ++i) s.d_transforms[i] = scratch.transform_sums(b)[i];
        pose_backward<T>(pose_input(p.model, p.betas + (b0 + b) * p.betas_stride, p.pose + (b0 + b) * p.pose_stride, p.axis_angle), s,
                         d_features[b], nullptr, p.grad_betas ? p.grad_betas + (b0 + b) * p.model.K : nullptr,
                         p.grad_pose ? p.grad_pose + (b0 + b) * (p.axis_angle ? 3 : 9) * lay.J : nullptr, nullptr);
    }
}

// Runs call(group size, first element, scratch) over the batch: full groups first, then what is left, one by one.
template <class T, class Call>
void over_groups(const LandmarkTables<T>& m, index_t B, int threads, const Call& call) {
    const index_t full = B / max_group, work = full + B % max_group;
    Team team(threads, double(B) * m.lay.chosen_tiles() * lanes<T> * 3 * (m.lay.F + 12));
    Shares shares(work, team.size());
    Scratch<T> values(LandmarkScratch<T>::size(m.lay), team.size());
    Scratch<double> pose(PoseScratch::size(m.lay.J), team.size());
    team.run([&](Member& member) {
        const FlushSubnormals flush;
        const LandmarkScratch<T> scratch(m.lay, values.data(member.number), pose.data(member.number));
        shares.run(member, [&](index_t piece) {
            if (piece < full)
                call(std::integral_constant<int, max_group>{}, piece * max_group, scratch);
            else
                call(std::integral_constant<int, 1>{}, full * max_group + (piece - full), scratch);
        });
    });
}

template <class T>
void landmarks_forward(const LandmarksForward<T>& p, int threads) {
    if (p.B == 0) return;
    const LandmarkTables<T> m(p.model);
    over_groups(m, p.B, threads,
                [&](auto group, index_t b0, const LandmarkScratch<T>& scratch) { landmarks_forward_group<T, group()>(p, m, b0, scratch); });
}

template <class T>
void landmarks_backward(const LandmarksBackward<T>& p, int threads) {
    if (p.B == 0) return;
    const LandmarkTables<T> m(p.model);
    over_groups(m, p.B, threads, [&](auto group, index_t b0, const LandmarkScratch<T>& scratch) {
        landmarks_backward_group<T, group()>(p, m, b0, scratch);
    });
}

}  // namespace
}  // namespace ringnet
