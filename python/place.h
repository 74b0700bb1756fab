// Where a call runs is where its tensors live: on the CPU with as many threads as PyTorch would use, on a CUDA device on PyTorch's
// current stream.
#pragma once

#include <pybind11/gil_safe_call_once.h>
#include <pybind11/pybind11.h>

#include <cstdint>

namespace ringnet {
namespace {

namespace py = pybind11;

int number_of_threads() {
    PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> once;
    const auto ask = [] { return py::object(py::module_::import("torch").attr("get_num_threads")); };
    return once.call_once_and_store_result(ask).get_stored()().cast<int>();
}

// The device of a tensor, being the current one as long as this lives.
class OnCuda {
  public:
    explicit OnCuda(py::handle tensor) {
        PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::module_> once;
        const py::module_& cuda = once.call_once_and_store_result([] { return py::module_::import("torch.cuda"); }).get_stored();
        const py::object device = tensor.attr("device");
        stream_ = current_stream(cuda, device);
        if (cuda.attr("current_device")().equal(device.attr("index"))) return;
        guard_ = cuda.attr("device")(device);
        guard_.attr("__enter__")();
    }
    ~OnCuda() {
        if (!guard_) return;
        try {
            guard_.attr("__exit__")(py::none(), py::none(), py::none());
        } catch (py::error_already_set& error) {
            error.discard_as_unraisable(__func__);
        }
    }
    OnCuda(const OnCuda&) = delete;
    OnCuda& operator=(const OnCuda&) = delete;
    void* stream() const { return reinterpret_cast<void*>(stream_); }

  private:
    // Its handle alone where PyTorch gives that, which is not its public interface, else that of a Stream object.
    static std::uintptr_t current_stream(const py::module_& cuda, const py::object& device) {
        PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> once;
        const auto ask = [] { return py::getattr(py::module_::import("torch._C"), "_cuda_getCurrentRawStream", py::none()); };
        const py::object& handle = once.call_once_and_store_result(ask).get_stored();
        if (!handle.is_none()) return handle(device.attr("index")).cast<std::uintptr_t>();
        return cuda.attr("current_stream")(device).attr("cuda_stream").cast<std::uintptr_t>();
    }

    std::uintptr_t stream_;
    py::object guard_;
};

}  // namespace
}  // namespace ringnet
