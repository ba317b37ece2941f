// A pretend CUDA device for CPU builds of torch. A tensor says cuda:N, its memory is the host's, and every
// operator without a kernel of its own here runs on the CPU over the same memory. Operators that mix devices
// raise, as on a card; a device guard makes autograd run the backward pass in the device's own thread.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <unordered_set>

namespace {
using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;
using c10::Stream;

DeviceIndex count_devices() {
  static const char* count = std::getenv("PRETEND_DEVICES");  // device.py sets it
  return count ? static_cast<DeviceIndex>(std::atoi(count)) : 1;
}

Device cuda(DeviceIndex index) { return Device(c10::kCUDA, index); }

// -- the device that is current in a thread, and its one stream

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static thread_local DeviceIndex current;
  c10::DeviceType type() const override { return c10::kCUDA; }
  Device exchangeDevice(Device device) const override {
    const auto before = current;
    setDevice(device);
    return cuda(before);
  }
  Device getDevice() const override { return cuda(current); }
  void setDevice(Device device) const override {
    if (device.has_index()) current = device.index();
  }
  void uncheckedSetDevice(Device device) const noexcept override {
    if (device.has_index()) current = device.index();
  }
  Stream getStream(Device device) const noexcept override {
    return Stream(Stream::DEFAULT, cuda(device.has_index() ? device.index() : current));
  }
  Stream getDefaultStream(Device device) const override { return getStream(device); }
  Stream getNewStream(Device device, int = 0) const override { return getStream(device); }
  Stream getStreamFromGlobalPool(Device device, bool = false) const override { return getStream(device); }
  Stream exchangeStream(Stream stream) const noexcept override { return getStream(stream.device()); }
  DeviceIndex deviceCount() const noexcept override { return count_devices(); }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
};
thread_local DeviceIndex Guard::current = 0;

// -- pinned memory: the host's, remembered by address and size, so that `is_pinned` tells it apart

std::mutex pinned_mutex;
std::map<const char*, size_t> pinned;

struct PinnedAllocator final : c10::Allocator {
  static void release(void* memory) {
    {
      std::lock_guard<std::mutex> hold(pinned_mutex);
      pinned.erase(static_cast<const char*>(memory));
    }
    std::free(memory);
  }
  at::DataPtr allocate(size_t size) override {
    void* memory = std::aligned_alloc(64, (size + 64) / 64 * 64);
    std::lock_guard<std::mutex> hold(pinned_mutex);
    pinned[static_cast<const char*>(memory)] = size;
    return {memory, memory, &release, Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t count) const override {
    default_copy_data(to, from, count);
  }
};

// -- one memory seen from both sides

void drop_storage(void* context) { delete static_cast<c10::Storage*>(context); }

c10::Storage share(const c10::Storage& storage, Device device, bool resizable) {
  auto* kept = new c10::Storage(storage);
  at::DataPtr pointer(const_cast<void*>(storage.data()), kept, drop_storage, device);
  return c10::Storage(
      c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(pointer), at::getCPUAllocator(), resizable);
}

Tensor of_storage(c10::Storage storage, const Tensor& like, DispatchKey key) {
  auto out = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), DispatchKeySet(key), like.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return out;
}

Tensor on_cpu(const Tensor& t) {
  return of_storage(share(t.storage(), c10::kCPU, t.numel() == 0), t, DispatchKey::CPU);
}

Tensor on_device(const Tensor& t, DeviceIndex index) {
  return of_storage(share(t.storage(), cuda(index), true), t, DispatchKey::CUDA);
}

bool is_on_device(const Tensor& t) { return t.defined() && t.device().is_cuda(); }

// -- every operator without a kernel of its own: checked, run on the CPU, its results given back

const std::unordered_set<std::string> takes_indices_of_host = {
    "aten::index.Tensor",     "aten::index.Tensor_out", "aten::_index_put_impl_.out", "aten::index_put_",
    "aten::_index_put_impl_", "aten::index_put",        "aten::_unsafe_index.Tensor"};

struct Swap {
  Tensor device, cpu;
};

struct Call {
  const c10::OperatorHandle& op;
  bool mixes;
  DeviceIndex index = -1;
  std::vector<Swap> swaps{};

  void use(DeviceIndex found, const char* other) {
    TORCH_CHECK(index < 0 || found == index, "pretend CUDA: ", op.schema().operator_name(),
                ": Expected all tensors to be on the same device, but found at least two devices, cuda:", index,
                " and ", other, found, "!");
    index = found;
  }

  Tensor to_cpu(const Tensor& t) {
    if (is_on_device(t)) {
      use(t.device().index(), "cuda:");
      swaps.push_back({t, on_cpu(t)});
      return swaps.back().cpu;
    }
    TORCH_CHECK(mixes || !t.defined() || t.dim() == 0, "pretend CUDA: ", op.schema().operator_name(),
                ": Expected all tensors to be on the same device, but found at least two devices, cuda and cpu!");
    return t;
  }

  IValue to_cpu(const IValue& value) {
    if (value.isTensor()) return to_cpu(value.toTensor());
    if (value.isTensorList()) {
      std::vector<Tensor> out;
      for (const Tensor& t : value.toTensorVector()) out.push_back(to_cpu(t));
      return IValue(out);
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> out;
      for (std::optional<Tensor> t : value.toOptionalTensorList())
        out.push_back(t ? std::optional<Tensor>(to_cpu(*t)) : t);
      return IValue(out);
    }
    if (value.isDevice()) {
      if (value.toDevice().is_cuda() && value.toDevice().has_index()) use(value.toDevice().index(), "cuda:");
      return IValue(Device(c10::kCPU));
    }
    return value;
  }

  Tensor back(const Tensor& t) const {
    if (!t.defined() || !t.device().is_cpu()) return t;
    for (const auto& one : swaps)
      if (t.unsafeGetTensorImpl() == one.cpu.unsafeGetTensorImpl()) return one.device;
    for (const auto& one : swaps)  // a view
      if (t.storage().unsafeGetStorageImpl() == one.cpu.storage().unsafeGetStorageImpl())
        return of_storage(c10::Storage(one.device.storage()), t, DispatchKey::CUDA);
    return on_device(t, index < 0 ? Guard::current : index);
  }

  IValue back(const IValue& value) const {
    if (value.isTensor()) return back(value.toTensor());
    if (value.isTensorList()) {
      std::vector<Tensor> out;
      for (const Tensor& t : value.toTensorVector()) out.push_back(back(t));
      return IValue(out);
    }
    return value;
  }

  // Outputs that the operator resized are given their new memory.
  void follow_resized() const {
    for (const auto& one : swaps) {
      if (one.cpu.sizes() == one.device.sizes() && one.cpu.strides() == one.device.strides()) continue;
      auto* impl = one.device.unsafeGetTensorImpl();
      if (one.cpu.storage().data() != one.device.storage().data())
        impl->set_storage_keep_dtype(share(one.cpu.storage(), one.device.device(), true));
      impl->set_sizes_and_strides(one.cpu.sizes(), one.cpu.strides(), one.cpu.storage_offset());
    }
  }
};

void run_on_cpu(const c10::OperatorHandle& op, DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto& name = schema.operator_name();
  const auto full = name.name + (name.overload_name.empty() ? "" : "." + name.overload_name);
  Call call{op, takes_indices_of_host.count(full) > 0};
  call.swaps.reserve(64);
  const auto arguments = schema.arguments().size(), first = stack->size() - arguments;
  const std::vector<IValue> given(stack->begin() + first, stack->end());
  for (size_t k = 0; k < arguments; k++) (*stack)[first + k] = call.to_cpu(given[k]);
  op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
  call.follow_resized();
  for (size_t k = stack->size() - schema.returns().size(); k < stack->size(); k++)
    (*stack)[k] = call.back((*stack)[k]);
}

// -- operators with kernels of their own

DeviceIndex index_of(std::optional<Device> device) {
  return device && device->has_index() ? device->index() : Guard::current;
}

void must_fit(int64_t bytes) {
  constexpr double total = 141e9, gib = 1 << 30;  // as device.py says
  TORCH_CHECK_WITH(OutOfMemoryError, bytes <= total, "CUDA out of memory. Tried to allocate ", bytes / gib,
                   " GiB. GPU 0 has a total capacity of ", total / gib, " GiB of which ", total / gib,
                   " GiB is free.");
}

Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const auto options = at::TensorOptions().dtype(dtype).device(at::kCPU);
  must_fit(c10::multiply_integers(C10_AS_INTARRAYREF_SLOW(size)) * options.dtype().itemsize());
  return on_device(at::empty(C10_AS_INTARRAYREF_SLOW(size), options, format), index_of(device));
}

Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<Device> device, std::optional<bool>) {
  const auto options = at::TensorOptions().dtype(dtype).device(at::kCPU);
  const auto made =
      at::empty_strided(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), options);
  return on_device(made, index_of(device));
}

Tensor& copy_(Tensor& self, const Tensor& source, bool) {
  auto to = is_on_device(self) ? on_cpu(self) : self;
  to.copy_(is_on_device(source) ? on_cpu(source) : source);
  return self;
}

const Tensor& resize_(const Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  const auto fresh = at::empty(sizes, self.options().device(at::kCPU));
  auto* impl = self.unsafeGetTensorImpl();
  if (fresh.nbytes() + self.storage_offset() * self.itemsize() > self.storage().nbytes())
    impl->set_storage_keep_dtype(share(fresh.storage(), self.device(), true));
  impl->set_sizes_contiguous(sizes);
  return self;
}

// Attention in plain products, which every head size and every mask can have.
int64_t no_fused_attention(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double,
                           bool, std::optional<double>, bool) {
  return 0;
}

void record_stream(Tensor&, Stream) {}
}  // namespace

// torch looks the class up by this name.
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return count_devices(); }
  DeviceIndex deviceCount() const override { return count_devices(); }
  DeviceIndex current_device() const override { return Guard::current; }
  void setCurrentDevice(DeviceIndex device) const override { Guard::current = device; }
  DeviceIndex getCurrentDevice() const override { return Guard::current; }
  DeviceIndex exchangeDevice(DeviceIndex device) const override {
    const auto before = Guard::current;
    Guard::current = device;
    return before;
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex device) const override { return exchangeDevice(device); }
  const at::Generator& getDefaultGenerator(DeviceIndex = -1) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Allocator* getPinnedMemoryAllocator() const override {
    static PinnedAllocator one;
    return &one;
  }
  bool isPinnedPtr(const void* data) const override {
    std::lock_guard<std::mutex> hold(pinned_mutex);
    auto after = pinned.upper_bound(static_cast<const char*>(data));
    if (after == pinned.begin()) return false;
    const auto [start, size] = *std::prev(after);
    return data == start || static_cast<const char*>(data) < start + size;
  }
  void deviceSynchronize(DeviceIndex) const override {}
};

namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks)
}

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("copy_", TORCH_FN(copy_));
  m.impl("resize_", TORCH_FN(resize_));
  m.impl("_fused_sdp_choice", TORCH_FN(no_fused_attention));
  m.impl("record_stream", TORCH_FN(record_stream));
}

// What Python's half (device.py) sets and asks.
extern "C" void pretend_lock_pages(const void* memory, size_t size) {
  std::lock_guard<std::mutex> hold(pinned_mutex);
  pinned[static_cast<const char*>(memory)] = size;
}
extern "C" void pretend_unlock_pages(const void* memory) {
  std::lock_guard<std::mutex> hold(pinned_mutex);
  pinned.erase(static_cast<const char*>(memory));
}
extern "C" void pretend_set_device(int index) { Guard::current = static_cast<DeviceIndex>(index); }
extern "C" int pretend_current_device() { return Guard::current; }
