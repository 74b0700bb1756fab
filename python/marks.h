// What is known of tensors that something was made of: whether they are still there, and hold the same values.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "ops.h"
#include "place.h"
#include "tensors.h"

namespace ringnet {
namespace {

namespace py = pybind11;

// The values of a tensor in host memory as they once were. `sampled_same` reads little of them, `piece_same` a piece, `all_same` all.
class Values {
  public:
    using Word = std::uint64_t;

    void note(const View& view) {
        size_ = view.host ? view.span() : 0, memory_ = reinterpret_cast<const unsigned char*>(view.address);
        digests_ = all_digests();
        sample();
    }
    bool sampled_same() const {
        for (std::size_t i = 0; i < sampled_; ++i)
            if (word(sample_[i].place) != sample_[i].value) return false;
        return true;
    }
    std::size_t pieces() const { return digests_.size(); }
    bool piece_same(std::size_t i) const {
        constexpr std::size_t piece = cpu::digest_piece;
        Word digest;
        cpu::digests(memory_ + i * piece, std::min(piece, size_ - i * piece), &digest, 1);
        return digest == digests_[i];
    }
    bool all_same() const { return all_digests() == digests_; }

  private:
    static constexpr std::size_t samples = 16;

    std::vector<Word> all_digests() const {
        std::vector<Word> digests(ceil_div(size_, cpu::digest_piece));
        if (size_) cpu::digests(memory_, size_, digests.data(), size_ < 65536 ? 1 : number_of_threads());
        return digests;
    }
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

    struct Sample {
        std::size_t place;
        Word value;
    };
    const unsigned char* memory_ = nullptr;
    std::size_t size_ = 0, sampled_ = 0;
    Sample sample_[samples];
    std::vector<Word> digests_;
};

class Mark;

// Lies in a tensor's __dict__ while something is known of the tensor, and dies with it. A weak reference to the tensor would tell the
// same, but torch.utils.swap_tensors refuses tensors that have one.
struct Tag {
    const PyObject* tensor;  // whose it is: copy.copy gives a copy the same tag, and swap_tensors swaps two tensors' tags
    std::weak_ptr<Mark> mark;

    static const py::str& name() {
        PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::str> once;
        return once.call_once_and_store_result([] { return py::str("_ringnet_ext_tag"); }).get_stored();
    }
    // Whatever lies there, nothing if nothing does.
    static py::object in(py::handle t) {
        auto tag = py::reinterpret_steal<py::object>(PyObject_GetAttr(t.ptr(), name().ptr()));
        if (!tag) PyErr_Clear();
        return tag;
    }
    // The tensor's own.
    static Tag* of(const py::object& lying, py::handle t) {
        Tag* const tag = lying && py::isinstance<Tag>(lying) ? lying.cast<Tag*>() : nullptr;
        return tag && tag->tensor == t.ptr() ? tag : nullptr;
    }
};

// What is known of a tensor: where it is, how often it was written to, what it holds. One for all that is made of the tensor, so that
// when a change is seen, it is seen by everything.
class Mark {
  public:
    static std::shared_ptr<Mark> of(py::handle t, const View& now) {
        py::object lying = Tag::in(t);
        Tag* tag = Tag::of(lying, t);
        if (!tag) {
            lying = py::cast(Tag{t.ptr(), {}});
            tag = lying.cast<Tag*>();
            py::setattr(t, Tag::name(), lying);
        }
        std::shared_ptr<Mark> mark = tag->mark.lock();
        if (mark)
            mark->update(t, now, mark->seen_again_);
        else
            tag->mark = mark = std::make_shared<Mark>(t, lying, now);
        return mark;
    }
    // Whether a tensor's values are known: it was looked for again after a mark was made.
    static bool seen_again(py::handle t) {
        const py::object lying = Tag::in(t);
        const Tag* const tag = Tag::of(lying, t);
        const std::shared_ptr<Mark> mark = tag ? tag->mark.lock() : nullptr;
        return mark && mark->seen_again_;
    }
    Mark(py::handle t, const py::object& tag, const View& now) : tensor_(t.ptr()), tag_(weak(tag, {})) { note(t, now); }

    bool is(py::handle t) const { return t.ptr() == tensor_ && Tag::in(t).ptr() == tag(); }
    // How many changes have been seen.
    std::int64_t changes() const { return changes_; }
    bool readable() const { return view_.ndim >= 0; }
    // Calls `call` when the tensor goes, as long as the result lives.
    py::object on_death(py::handle call) const { return weak(tag(), call); }
    // Looks whether anything has happened to it. Its values are read from when it is seen again on, which is a change: what was made of
    // it before is not known to be true. Many a tensor is never seen again. On a CUDA device values are never read.
    void update(py::handle t, const View& now, bool again) {
        if (now.ndim < 0 || !(now == view_)) return changed(t, now, again);
        if (again && !seen_again_) {
            if (now.host) return changed(t, now, again);
            seen_again_ = true;
        }
        const std::int64_t version = attribute(t, Torch::get().version);
        if (version != version_) {
            // DistributedDataParallel writes all buffers anew at every step, as they were.
            if (!seen_again_ || !now.host || !values_.all_same()) return changed(t, now, again);
            version_ = version;
        } else if (seen_again_ && !values_.sampled_same()) {
            changed(t, now, again);
        }
    }
    std::size_t pieces() const { return values_.pieces(); }
    void update_piece(py::handle t, std::size_t piece) {
        if (!values_.piece_same(piece)) changed(t, view_, true);
    }

  private:
    static py::object weak(py::handle object, py::handle call) {
        auto reference = py::reinterpret_steal<py::object>(PyWeakref_NewRef(object.ptr(), call.ptr()));
        if (!reference) throw py::error_already_set();
        return reference;
    }
    PyObject* tag() const {
#if PY_VERSION_HEX >= 0x030D0000
        PyObject* object = nullptr;
        if (PyWeakref_GetRef(tag_.ptr(), &object) == 1) Py_DECREF(object);  // the tensor holds it, if it is there
        return object;
#else
        return PyWeakref_GetObject(tag_.ptr());
#endif
    }
    void changed(py::handle t, const View& now, bool again) {
        ++changes_;
        seen_again_ = seen_again_ || again;
        note(t, now);
    }
    void note(py::handle t, const View& now) {
        version_ = attribute(t, Torch::get().version);  // first: of a write in between one notices too much, not too little
        view_ = now;
        if (seen_again_) values_.note(view_);
    }

    const PyObject* tensor_;
    py::object tag_;
    std::int64_t version_ = 0, changes_ = 0;
    bool seen_again_ = false;
    View view_;
    Values values_;
};

// The tensors (or None) of a call, read once.
class Tensors {
  public:
    explicit Tensors(const py::tuple& tensors) : tensors_(tensors), views_(tensors.size()) {
        for (std::size_t i = 0; i < size(); ++i)
            if (!(*this)[i].is_none() && !read((*this)[i], views_[i])) views_[i] = View();
    }
    std::size_t size() const { return views_.size(); }
    py::handle operator[](std::size_t i) const { return PyTuple_GET_ITEM(tensors_.ptr(), i); }
    const View& view(std::size_t i) const { return views_[i]; }
    // Few integers in host memory are known by their values, wherever they lie: compilers make a joint tree anew for every call.
    bool by_value(std::size_t i) const {
        const View& v = views_[i];
        return v.ndim >= 0 && v.host && v.integer && v.contiguous() && v.span() <= 512 && Torch::get().plain((*this)[i]);
    }
    // What they and the settings are known by, in a dict.
    py::tuple key(const py::tuple& settings) const {
        py::tuple key(size() + settings.size());
        for (std::size_t i = 0; i < size(); ++i)
            key[i] = by_value(i) ? values(views_[i]) : py::object(py::int_(std::uintptr_t((*this)[i].ptr())));
        for (std::size_t i = 0; i < settings.size(); ++i) key[size() + i] = settings[i];
        return key;
    }

  private:
    static py::object values(const View& v) {
        std::string all(reinterpret_cast<const char*>(&v.item), sizeof v.item);
        all.append(reinterpret_cast<const char*>(v.shape), v.ndim * sizeof *v.shape);
        return py::bytes(all.append(reinterpret_cast<const char*>(v.address), v.span()));
    }
    const py::tuple& tensors_;
    std::vector<View> views_;
};

// What tensors were when something was made of them.
class Marks {
  public:
    // on_death is called when one of the tensors goes.
    Marks(const py::tuple& tensors, const py::object& on_death) {
        const Tensors now(tensors);
        for (std::size_t i = 0; i < now.size(); ++i) {
            Known known;
            if (!now[i].is_none() && !now.by_value(i)) {
                known.mark = Mark::of(now[i], now.view(i));
                known.changes = known.mark->changes();
                known.death = known.mark->on_death(on_death);
                readable_ = readable_ && known.mark->readable(), constant_ = constant_ && Torch::get().plain(now[i]);
            }
            known_.push_back(std::move(known));
        }
    }
    // Whether tensors of the same key are the same, and nothing is seen to have happened to them: a little of their values is looked at,
    // every time something else. Not again: it's the use that the marks were made for.
    bool unchanged(const Tensors& now, bool again) {
        if (!readable_ || now.size() != known_.size()) return false;
        for (std::size_t i = 0; i < now.size(); ++i) {
            if (!known_[i].mark) continue;
            if (!known_[i].mark->is(now[i])) return false;
            known_[i].mark->update(now[i], now.view(i), again);
        }
        if (again) next_piece(now);
        for (const Known& known : known_)
            if (known.mark && known.mark->changes() != known.changes) return false;
        return true;
    }
    // Whether they are all of PyTorch's own types.
    bool constant() const { return constant_; }

  private:
    void next_piece(const Tensors& now) {
        for (std::size_t tried = 0; tried <= known_.size(); ++tried, turn_ = (turn_ + 1) % known_.size(), piece_ = 0) {
            const Known& known = known_[turn_];
            if (!known.mark || piece_ >= known.mark->pieces()) continue;
            known.mark->update_piece(now[turn_], piece_++);
            return;
        }
    }
    struct Known {
        std::shared_ptr<Mark> mark;  // of those that aren't known by their values
        std::int64_t changes = 0;
        py::object death;
    };
    std::vector<Known> known_;
    std::size_t turn_ = 0, piece_ = 0;
    bool readable_ = true, constant_ = true;
};

// The entry (whose attribute `marks` are Marks) of unchanged tensors, or None. Looked for `again`, after what it was made for, it is found
// only where autograd doesn't follow a tensor.
py::object find(const py::dict& entries, const py::tuple& tensors, const py::tuple& settings, bool again) {
    const Torch& torch = Torch::get();
    const Tensors now(tensors);
    PyObject* const entry = PyDict_GetItemWithError(entries.ptr(), now.key(settings).ptr());
    if (!entry) {
        if (PyErr_Occurred()) throw py::error_already_set();
        return py::none();
    }
    const auto found = py::reinterpret_borrow<py::object>(entry);
    for (std::size_t i = 0; again && i < now.size(); ++i)
        if (!now[i].is_none() && !now.view(i).integer && attribute(now[i], torch.requires_grad)) return py::none();
    return found.attr("marks").cast<Marks&>().unchanged(now, again) ? found : py::none();
}

void bind_marks(py::module_& m) {
    // A tensor's pickle and deep copy have an empty shape in its place, which anybody can read.
    py::class_<Tag>(m, "Tag").def("__reduce__",
                                  [](const Tag&) { return py::make_tuple(py::module_::import("torch").attr("Size"), py::tuple()); });
    py::class_<Marks>(m, "Marks")
        .def(py::init<const py::tuple&, const py::object&>(), py::arg("tensors"), py::arg("on_death"))
        .def_property_readonly("constant", &Marks::constant);
    m.def("find", &find, py::arg("entries"), py::arg("tensors"), py::arg("settings"), py::arg("again"));
    m.def("key", [](const py::tuple& tensors, const py::tuple& settings) { return Tensors(tensors).key(settings); });
    m.def("seen_again", &Mark::seen_again);
}

}  // namespace
}  // namespace ringnet
