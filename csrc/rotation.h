// Axis-angle to rotation matrix (Rodrigues): value and vector-Jacobian product. Matrices are row-major, 9 values.
#pragma once

#include <cmath>

#include "common.h"

namespace ringnet {

// R = I + a K + b K^2, K the cross product matrix of r, s = |r|^2, a = sin(x)/x, b = (1 - cos x)/x^2, x = sqrt(s).
// a and b are smooth functions of s: there is no singularity at 0, only an unlucky way to compute them there.
template <class T>
struct RodriguesFactors {
    T a, b;    // values
    T da, db;  // derivatives with respect to s
};

template <class T>
RN_HOST_DEVICE RodriguesFactors<T> rodrigues_factors(T s) {
    RodriguesFactors<T> f;
    if (s < T(1)) {
        // Series: a = sum (-s)^n / (2n+1)!, b = sum (-s)^n / (2n+2)!, value and derivative by Horner's rule, each
        // coefficient by division from the one before: c_n = c_{n-1} / ((2n)(2n+1)) turned inside out.
        constexpr int terms = sizeof(T) == 8 ? 10 : 6;
        f.a = f.b = T(1);
        f.da = f.db = T(0);
        for (int n = terms; n >= 1; --n) {
            const T ca = T(-1) / T((2 * n) * (2 * n + 1)), cb = T(-1) / T((2 * n + 1) * (2 * n + 2));
            f.da = ca * (f.a + s * f.da);
            f.db = cb * (f.b + s * f.db);
            f.a = T(1) + ca * s * f.a;
            f.b = T(1) + cb * s * f.b;
        }
        f.b *= T(0.5);
        f.db *= T(0.5);
    } else {
        const T x = std::sqrt(s), c = std::cos(x);
        f.a = std::sin(x) / x;
        f.b = (T(1) - c) / s;
        f.da = (c - f.a) / (T(2) * s);
        f.db = (f.a - T(2) * f.b) / (T(2) * s);
    }
    return f;
}

template <class T>
RN_HOST_DEVICE void rodrigues(const T r[3], T R[9]) {
    const T x = r[0], y = r[1], z = r[2], xx = x * x, yy = y * y, zz = z * z;
    const RodriguesFactors<T> f = rodrigues_factors<T>(xx + yy + zz);
    const T a = f.a, b = f.b;
    R[0] = T(1) - b * (yy + zz), R[1] = b * x * y - a * z, R[2] = b * x * z + a * y;
    R[3] = b * x * y + a * z, R[4] = T(1) - b * (xx + zz), R[5] = b * y * z - a * x;
    R[6] = b * x * z - a * y, R[7] = b * y * z + a * x, R[8] = T(1) - b * (xx + yy);
}

// dr = (dR/dr)^T dR.
template <class T>
RN_HOST_DEVICE void rodrigues_vjp(const T r[3], const T dR[9], T dr[3]) {
    const T x = r[0], y = r[1], z = r[2], xx = x * x, yy = y * y, zz = z * z;
    const RodriguesFactors<T> f = rodrigues_factors<T>(xx + yy + zz);
    // The antisymmetric part of dR meets a K, the symmetric part b K^2 = b (r r^T - s I).
    const T wx = dR[7] - dR[5], wy = dR[2] - dR[6], wz = dR[3] - dR[1];
    const T sxy = dR[1] + dR[3], sxz = dR[2] + dR[6], syz = dR[5] + dR[7];
    const T d_a = wx * x + wy * y + wz * z;
    const T d_b = x * y * sxy + x * z * sxz + y * z * syz - (yy + zz) * dR[0] - (xx + zz) * dR[4] - (xx + yy) * dR[8];
    const T d_s = T(2) * (d_a * f.da + d_b * f.db);
    dr[0] = d_s * x + f.a * wx + f.b * (y * sxy + z * sxz - T(2) * x * (dR[4] + dR[8]));
    dr[1] = d_s * y + f.a * wy + f.b * (x * sxy + z * syz - T(2) * y * (dR[0] + dR[8]));
    dr[2] = d_s * z + f.a * wz + f.b * (x * sxz + y * syz - T(2) * z * (dR[0] + dR[4]));
}

}  // namespace ringnet
