// PyTorch's tensors as Python has them, read without its headers: through DLPack's C exchange interface, a table of functions
// that their type offers from PyTorch 2.10 on (https://dmlc.github.io/dlpack/latest/c_api.html), or else through their
// attributes, ten times as slowly. At batch 1 that is what a call's checks cost.
#pragma once

#include <pybind11/gil_safe_call_once.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

namespace ringnet {
namespace {

namespace py = pybind11;

// Memory layout of the interface's structures, version 1.
namespace dlpack {
struct Tensor {
    void* data;
    std::int32_t device_type, device_id;
    std::int32_t ndim;
    std::uint8_t type_code, type_bits;
    std::uint16_t type_lanes;
    std::int64_t *shape, *strides;
    std::uint64_t byte_offset;
};
struct Exchange {
    std::uint32_t major, minor;
    Exchange* older;
    void *allocate, *owning_from_object, *owning_to_object;
    int (*from_object)(void* object, Tensor* out);
    int (*current_stream)(std::int32_t device_type, std::int32_t device_id, void** stream);
};
}  // namespace dlpack

// What every call asks PyTorch for, looked up once.
struct Torch {
    py::object tensor, parameter, cpu;
    py::str version{"_version"}, requires_grad{"requires_grad"}, is_neg{"is_neg"}, data_ptr{"data_ptr"}, shape{"shape"}, stride{"stride"},
        dtype{"dtype"}, device{"device"}, element_size{"element_size"};
    const dlpack::Exchange* exchange = nullptr;

    Torch() {
        const py::module_ torch = py::module_::import("torch");
        tensor = torch.attr("Tensor"), parameter = torch.attr("nn").attr("Parameter"), cpu = torch.attr("device")("cpu");
        use_exchange(true);
    }
    static Torch& get() {
        PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Torch> once;
        return once.call_once_and_store_result([] { return Torch(); }).get_stored();
    }
    void use_exchange(bool wanted) {
        exchange = nullptr;
        const py::object table = py::getattr(tensor, "__dlpack_c_exchange_api__", py::none());
        if (!wanted || !PyCapsule_IsValid(table.ptr(), "dlpack_exchange_api")) return;
        auto* offered = static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(table.ptr(), "dlpack_exchange_api"));
        while (offered && offered->major != 1) offered = offered->older;
        if (offered && offered->from_object) exchange = offered;
    }
    // Of no subclass, which might mean something else by its memory.
    bool plain(py::handle t) const {
        const void* type = Py_TYPE(t.ptr());
        return type == tensor.ptr() || type == parameter.ptr();
    }
};

// Where a dense tensor's values are and how they lie there. `dtype` and `device` can be compared and tell nothing else.
struct View {
    static constexpr int max_ndim = 4;
    std::uintptr_t address = 0;
    std::int64_t dtype = 0, device = 0;
    bool host = false;        // on the CPU
    int ndim = -1, item = 0;  // bytes of an element
    std::int64_t shape[max_ndim] = {}, stride[max_ndim] = {};

    bool operator==(const View& o) const {
        if (address != o.address || dtype != o.dtype || device != o.device || ndim != o.ndim) return false;
        for (int i = 0; i < ndim; ++i)
            if (shape[i] != o.shape[i] || stride[i] != o.stride[i]) return false;
        return true;
    }
    // Bytes from the first element to the end of the last one.
    std::size_t span() const {
        std::int64_t last = 0;
        for (int i = 0; i < ndim; ++i) {
            if (shape[i] == 0) return 0;
            last += (shape[i] - 1) * stride[i];
        }
        return ndim < 0 ? 0 : static_cast<std::size_t>(last + 1) * item;
    }
    bool like(const View& o) const { return dtype == o.dtype && device == o.device; }
    bool empty() const { return std::find(shape, shape + ndim, 0) != shape + ndim; }
    bool has_memory() const { return address != 0 || empty(); }  // a ZeroTensor has none
    bool contiguous() const {
        std::int64_t expected = 1;
        for (int i = ndim - 1; i >= 0; expected *= shape[i--])
            if (shape[i] != 1 && stride[i] != expected) return empty();
        return true;
    }
    // Of two dimensions: whether the values of a row lie one after the other.
    bool contiguous_rows() const { return shape[1] <= 1 || stride[1] == 1; }
};

// False for what isn't a tensor with memory and at most max_ndim dimensions.
bool read(py::handle t, View& view) {
    const Torch& torch = Torch::get();
    try {
        if (torch.exchange) {
            dlpack::Tensor d;
            if (!torch.plain(t) && !py::isinstance(t, torch.tensor)) return false;
            if (torch.exchange->from_object(t.ptr(), &d) != 0) throw py::error_already_set();
            if (d.ndim > View::max_ndim || (d.ndim > 0 && !d.strides)) return false;
            view.address = reinterpret_cast<std::uintptr_t>(d.data) + d.byte_offset;
            view.dtype = d.type_code << 24 | d.type_bits << 16 | d.type_lanes;
            view.device = std::int64_t(d.device_type) << 32 | d.device_id;
            view.host = d.device_type == 1 && d.data, view.item = (d.type_bits * d.type_lanes + 7) / 8;
            view.ndim = d.ndim;
            for (int i = 0; i < d.ndim; ++i) view.shape[i] = d.shape[i], view.stride[i] = d.strides[i];
            return view.has_memory();
        }
        const py::tuple shape = t.attr(torch.shape), stride = t.attr(torch.stride)();
        if (shape.size() > View::max_ndim) return false;
        view.address = t.attr(torch.data_ptr)().cast<std::uintptr_t>();
        view.dtype = reinterpret_cast<std::intptr_t>(py::object(t.attr(torch.dtype)).ptr());  // one object a type
        const py::object device = t.attr(torch.device);
        view.device = py::hash(device), view.host = device.equal(torch.cpu) && view.address;
        view.item = t.attr(torch.element_size)().cast<int>();
        view.ndim = static_cast<int>(shape.size());
        for (int i = 0; i < view.ndim; ++i) view.shape[i] = shape[i].cast<std::int64_t>(), view.stride[i] = stride[i].cast<std::int64_t>();
        return view.has_memory();
    } catch (const py::error_already_set&) {
        return false;
    }
}

// The same of a tensor of PyTorch's own types whose memory holds its values as they are, not negated.
bool read_plain(py::handle t, View& view) {
    const Torch& torch = Torch::get();
    return torch.plain(t) && read(t, view) && !t.attr(torch.is_neg)().cast<bool>();
}

std::int64_t attribute(py::handle t, const py::str& name) {
    const auto value = py::reinterpret_steal<py::object>(PyObject_GetAttr(t.ptr(), name.ptr()));
    const std::int64_t number = value ? PyLong_AsLongLong(value.ptr()) : -1;
    if (PyErr_Occurred()) throw py::error_already_set();
    return number;
}

// The values of a tensor in host memory as they once were, in so far as can be told by reading little of it.
//
// A write that PyTorch counts is always seen (see Mark). Of one that it doesn't count (fused optimisers, collectives, apply_, what is
// done through .data or by way of NumPy or DLPack), `sampled_same` sees at once one that changes all values, or all but zeros, and
// `piece_same`, taken piece after piece, any other one sooner or later.
class Values {
  public:
    static constexpr std::size_t piece_bytes = 4096, samples = 16;
    using Word = std::uint64_t;

    void note(const View& view) {
        size_ = view.host ? view.span() : 0, memory_ = reinterpret_cast<const unsigned char*>(view.address);
        pieces_.resize((size_ + piece_bytes - 1) / piece_bytes);
        for (std::size_t i = 0; i < pieces_.size(); ++i) pieces_[i] = digest(i);
        sample();
    }
    bool sampled_same() const {
        for (std::size_t i = 0; i < sampled_; ++i)
            if (word(sample_[i].place) != sample_[i].value) return false;
        return true;
    }
    std::size_t pieces() const { return pieces_.size(); }
    bool piece_same(std::size_t i) const { return digest(i) == pieces_[i]; }
    // Of a tensor of the same size, maybe elsewhere.
    bool all_same(const View& view) {
        if (!view.host || view.span() != size_) return false;
        memory_ = reinterpret_cast<const unsigned char*>(view.address);
        for (std::size_t i = 0; i < pieces_.size(); ++i)
            if (!piece_same(i)) return false;
        return true;
    }

  private:
    Word word(std::size_t place) const {
        Word w;
        std::memcpy(&w, memory_ + place, sizeof w);
        return w;
    }
    // Evenly spread, and not zero where something near isn't: scaling leaves zeros as they are.
    void sample() {
        const std::size_t words = size_ / sizeof(Word), within = words / samples, wanted = words < samples ? words : samples;
        for (sampled_ = 0; sampled_ < wanted; ++sampled_) {
            const std::size_t first = words < samples ? sampled_ : sampled_ * within + within / 2;
            const std::size_t last = words < samples ? first + 1 : (sampled_ + 1) * within;
            std::size_t w = first;
            while (w < last && w < first + 512 && word(w * sizeof(Word)) == 0) ++w;
            if (w == last || w == first + 512) w = first;
            sample_[sampled_] = {w * sizeof(Word), word(w * sizeof(Word))};
        }
    }
    // Eight sums of every eighth word, turned after each: of few words that differ, every one shows, wherever it is.
    Word digest(std::size_t piece) const {
        constexpr std::size_t lanes = 8, block = lanes * sizeof(Word);
        typedef Word Lanes __attribute__((vector_size(block)));
        const unsigned char *p = memory_ + piece * piece_bytes, *const end = memory_ + std::min(size_, (piece + 1) * piece_bytes);
        Lanes sums{}, words;
        const auto add = [&] { sums += words, sums = sums << 13 | sums >> 51; };
        for (; p + block <= end; p += block) std::memcpy(&words, p, block), add();
        if (p < end) words = Lanes{}, std::memcpy(&words, p, end - p), add();
        Word total = 0;
        for (std::size_t l = 0; l < lanes; ++l) total = (total ^ sums[l]) * 0x9E3779B97F4A7C15u, total ^= total >> 29;
        return total;
    }

    struct Sample {
        std::size_t place;
        Word value;
    };
    const unsigned char* memory_ = nullptr;
    std::size_t size_ = 0, sampled_ = 0;
    Sample sample_[samples];
    std::vector<Word> pieces_;
};

// What is known of a tensor: where it is, how often it was written to, what it holds. One for all that is made of the tensor, so that
// when a change is seen, it is seen by everything.
class Mark {
  public:
    static std::shared_ptr<Mark> of(py::handle t) {
        std::shared_ptr<Mark> mark = find(t);
        if (mark) {
            mark->update(t, mark->seen_again_);
        } else {
            mark = std::make_shared<Mark>(t);
            all()[t.ptr()] = mark;
        }
        return mark;
    }
    // Whether a tensor's values are known: it was looked for again after a mark was made.
    static bool seen_again(py::handle t) {
        const std::shared_ptr<Mark> mark = find(t);
        return mark && mark->seen_again_;
    }
    explicit Mark(py::handle t) : tensor_(t.ptr()), reference_(py::reinterpret_steal<py::object>(PyWeakref_NewRef(t.ptr(), nullptr))) {
        if (!reference_) throw py::error_already_set();
        note(t);
    }
    ~Mark() {
        const auto known = all().find(tensor_);
        if (known != all().end() && known->second.expired()) all().erase(known);
    }
    Mark(const Mark&) = delete;
    Mark& operator=(const Mark&) = delete;

    bool is(py::handle t) const { return t.ptr() == referent(); }
    // How many changes have been seen.
    std::int64_t changes() const { return changes_; }
    bool readable() const { return readable_; }
    // Looks whether anything has happened to it. Its values are read from when it is seen again on, which is a change: what was made of
    // it before is not known to be true. Many a tensor is never seen again. On a CUDA device values are never read.
    void update(py::handle t, bool again) {
        View now;
        if (!read(t, now) || !(now == view_)) return changed(t, again);
        const std::int64_t version = attribute(t, Torch::get().version);
        if (again && !seen_again_) {
            if (now.host) return changed(t, again);
            seen_again_ = true;
        }
        if (version != version_) {
            // DistributedDataParallel writes all buffers anew at every step, as they were.
            if (!seen_again_ || !now.host || !values_.all_same(now)) return changed(t, again);
            version_ = version;
        }
        if (seen_again_ && !values_.sampled_same()) changed(t, again);
    }
    std::size_t pieces() const { return values_.pieces(); }
    void update_piece(py::handle t, std::size_t piece) {
        if (!values_.piece_same(piece)) changed(t, true);
    }

  private:
    static std::unordered_map<PyObject*, std::weak_ptr<Mark>>& all() {
        static auto* const marks = new std::unordered_map<PyObject*, std::weak_ptr<Mark>>;
        return *marks;
    }
    static std::shared_ptr<Mark> find(py::handle t) {
        const auto known = all().find(t.ptr());
        const std::shared_ptr<Mark> mark = known == all().end() ? nullptr : known->second.lock();
        return mark && mark->is(t) ? mark : nullptr;
    }
    PyObject* referent() const {
#if PY_VERSION_HEX >= 0x030D0000
        PyObject* object = nullptr;
        if (PyWeakref_GetRef(reference_.ptr(), &object) == 1) Py_DECREF(object);  // the caller holds it, if it is there
        return object;
#else
        return PyWeakref_GetObject(reference_.ptr());
#endif
    }
    void changed(py::handle t, bool again) {
        ++changes_;
        seen_again_ = seen_again_ || again;
        note(t);
    }
    void note(py::handle t) {
        version_ = attribute(t, Torch::get().version);  // first: of a write in between one notices too much, not too little
        readable_ = read(t, view_);
        if (!readable_) view_ = View();
        if (seen_again_) values_.note(view_);
    }

    PyObject* tensor_;
    py::object reference_;
    std::int64_t version_ = 0, changes_ = 0;
    bool readable_ = false, seen_again_ = false;
    View view_;
    Values values_;
};

// What tensors (or None) were when something was made of them.
class Marks {
  public:
    // on_death is called when one of the tensors goes.
    Marks(const py::tuple& tensors, const py::object& on_death) {
        for (const py::handle t : tensors) {
            Known known;
            if (!t.is_none()) {
                known.mark = Mark::of(t);
                known.changes = known.mark->changes();
                known.death = py::reinterpret_steal<py::object>(PyWeakref_NewRef(t.ptr(), on_death.ptr()));
                if (!known.death) throw py::error_already_set();
                readable_ = readable_ && known.mark->readable(), constant_ = constant_ && Torch::get().plain(t);
            }
            known_.push_back(std::move(known));
        }
    }
    // Whether these are the same, and nothing is seen to have happened to them: a little of their values is looked at, every time
    // something else. The rest of a tensor's attributes may have changed. Not again: it's the use that the marks were made for.
    bool unchanged(const py::tuple& tensors, bool again) {
        if (!readable_ || tensors.size() != known_.size()) return false;
        for (std::size_t i = 0; i < known_.size(); ++i) {
            const py::handle t = PyTuple_GET_ITEM(tensors.ptr(), i);
            const Known& known = known_[i];
            if (!known.mark) {
                if (!t.is_none()) return false;
                continue;
            }
            if (!known.mark->is(t)) return false;
            known.mark->update(t, again);
        }
        if (again) next_piece(tensors);
        for (const Known& known : known_)
            if (known.mark && known.mark->changes() != known.changes) return false;
        return true;
    }
    // Whether they are all of PyTorch's own types.
    bool constant() const { return constant_; }
    // Whether they are unchanged, and autograd doesn't follow any.
    bool usable(const py::tuple& tensors) {
        const Torch& torch = Torch::get();
        for (const py::handle t : tensors)
            if (!t.is_none() && attribute(t, torch.requires_grad)) return false;
        return unchanged(tensors, true);
    }

  private:
    void next_piece(const py::tuple& tensors) {
        for (std::size_t tried = 0; tried <= known_.size(); ++tried, turn_ = (turn_ + 1) % known_.size(), piece_ = 0) {
            const Known& known = known_[turn_];
            if (!known.mark || piece_ >= known.mark->pieces()) continue;
            known.mark->update_piece(PyTuple_GET_ITEM(tensors.ptr(), turn_), piece_++);
            return;
        }
    }
    struct Known {
        std::shared_ptr<Mark> mark;
        std::int64_t changes = 0;
        py::object death;
    };
    std::vector<Known> known_;
    std::size_t turn_ = 0, piece_ = 0;
    bool readable_ = true, constant_ = true;
};

// B, where every tensor (or None) is (B, its width), of the dtype and device of `like`, plain and with contiguous rows; -1 where
// anything is different, or there is none.
std::int64_t batch_size(const py::tuple& tensors, const py::tuple& widths, py::handle like) {
    View l;
    if (tensors.size() != widths.size() || !read(like, l)) return -1;
    std::int64_t B = -1;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        const py::handle t = PyTuple_GET_ITEM(tensors.ptr(), i);
        if (t.is_none()) continue;
        View v;
        if (!read_plain(t, v) || !v.like(l) || v.ndim != 2 || !v.contiguous_rows() || (B >= 0 && v.shape[0] != B)) return -1;
        if (v.shape[1] != PyLong_AsLongLong(PyTuple_GET_ITEM(widths.ptr(), i))) return -1;
        B = v.shape[0];
    }
    return B;
}

// Whether tensors (or None) have these shapes and the dtype and device of `like`, and are plain; and contiguous, where that is asked for.
bool shaped_like(const py::tuple& tensors, const py::tuple& shapes, py::handle like, bool contiguous) {
    View l;
    if (tensors.size() != shapes.size() || !read(like, l)) return false;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        const py::handle t = PyTuple_GET_ITEM(tensors.ptr(), i), shape = PyTuple_GET_ITEM(shapes.ptr(), i);
        if (t.is_none()) continue;
        View v;
        if (!read_plain(t, v) || !v.like(l) || v.ndim != PyTuple_GET_SIZE(shape.ptr())) return false;
        for (int d = 0; d < v.ndim; ++d)
            if (v.shape[d] != PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), d))) return false;
        if (contiguous && !v.contiguous()) return false;
    }
    return true;
}

}  // namespace
}  // namespace ringnet
