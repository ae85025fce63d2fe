// A libcuda.so.1 for tests: each call notes its arguments, as the types of cuda.h read them, and answers with numbers
// that a test can tell apart. fake_fail makes one call fail. Compiled against cuda.h, so that its prototypes and
// structures are the real ones.
#include <cuda.h>
#include <stdio.h>
#include <string.h>

static char text[8192];
static size_t used;
static char failing[64];
static CUresult failure;
static int version = 13000;

const char* fake_log(void) { return text; }
void fake_reset(int driver_version) {
  used = 0;
  text[0] = 0;
  failing[0] = 0;
  version = driver_version;
}
void fake_fail(const char* name, int code) {
  snprintf(failing, sizeof failing, "%s", name);
  failure = (CUresult)code;
}

#define NOTE(name, ...)                                                    \
  used += snprintf(text + used, sizeof text - used, name " " __VA_ARGS__), \
      used += snprintf(text + used, sizeof text - used, "\n")
#define DONE(name) return !strcmp(failing, name) ? failure : CUDA_SUCCESS

CUresult cuInit(unsigned flags) {
  NOTE("cuInit", "%u", flags);
  DONE("cuInit");
}
CUresult cuDriverGetVersion(int* out) {
  *out = version;
  DONE("cuDriverGetVersion");
}
CUresult cuGetErrorName(CUresult code, const char** out) {
  *out = code == CUDA_ERROR_SYSTEM_NOT_READY ? "CUDA_ERROR_SYSTEM_NOT_READY" : NULL;
  return *out ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuDeviceGet(CUdevice* out, int ordinal) {
  NOTE("cuDeviceGet", "%d", ordinal);
  *out = ordinal;
  DONE("cuDeviceGet");
}
CUresult cuDeviceGetAttribute(int* out, CUdevice_attribute attribute, CUdevice device) {
  NOTE("cuDeviceGetAttribute", "%s %d",
       attribute == CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED           ? "vmm"
       : attribute == CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED ? "posix_fd"
       : attribute == CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED                ? "fabric"
       : attribute == CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED                         ? "multicast"
                                                                                      : "?",
       device);
  *out = 7;
  DONE("cuDeviceGetAttribute");
}
CUresult cuDeviceGetUuid_v2(CUuuid* out, CUdevice device) {
  NOTE("cuDeviceGetUuid", "%d", device);
  for (int i = 0; i < 16; ++i) out->bytes[i] = (char)i;
  DONE("cuDeviceGetUuid");
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice device) {
  NOTE("cuDevicePrimaryCtxRetain", "%d", device);
  *out = (CUcontext)0x123456789abcULL;
  DONE("cuDevicePrimaryCtxRetain");
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  NOTE("cuDevicePrimaryCtxRelease", "%d", device);
  DONE("cuDevicePrimaryCtxRelease");
}
CUresult cuCtxPushCurrent_v2(CUcontext context) {
  NOTE("cuCtxPushCurrent", "%p", (void*)context);
  DONE("cuCtxPushCurrent");
}
CUresult cuCtxPopCurrent_v2(CUcontext* out) {
  NOTE("cuCtxPopCurrent", "");
  *out = NULL;
  DONE("cuCtxPopCurrent");
}
CUresult cuCtxSynchronize(void) {
  NOTE("cuCtxSynchronize", "");
  DONE("cuCtxSynchronize");
}

static void note_memory(const CUmemAllocationProp* p) {
  NOTE("  prop", "pinned %d types %d device %d id %d rest %d %d %d %p", p->type == CU_MEM_ALLOCATION_TYPE_PINNED,
       p->requestedHandleTypes, p->location.type == CU_MEM_LOCATION_TYPE_DEVICE, p->location.id,
       p->allocFlags.compressionType, p->allocFlags.gpuDirectRDMACapable, p->allocFlags.usage, p->win32HandleMetaData);
}
static void note_multicast(const CUmulticastObjectProp* p) {
  NOTE("  prop", "devices %u size %zu types %llu flags %llu", p->numDevices, p->size, p->handleTypes, p->flags);
}

CUresult cuMemGetAllocationGranularity(size_t* out, const CUmemAllocationProp* prop,
                                       CUmemAllocationGranularity_flags option) {
  NOTE("cuMemGetAllocationGranularity", "recommended %d", option == CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
  note_memory(prop);
  *out = 1ULL << 40;
  DONE("cuMemGetAllocationGranularity");
}
CUresult cuMulticastGetGranularity(size_t* out, const CUmulticastObjectProp* prop,
                                   CUmulticastGranularity_flags option) {
  NOTE("cuMulticastGetGranularity", "recommended %d", option == CU_MULTICAST_GRANULARITY_RECOMMENDED);
  note_multicast(prop);
  *out = 1ULL << 41;
  DONE("cuMulticastGetGranularity");
}
CUresult cuMemCreate(CUmemGenericAllocationHandle* out, size_t size, const CUmemAllocationProp* prop,
                     unsigned long long flags) {
  NOTE("cuMemCreate", "%zu %llu", size, flags);
  note_memory(prop);
  *out = 0xfedcba9876543210ULL;
  DONE("cuMemCreate");
}
CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  NOTE("cuMemRelease", "%llx", handle);
  DONE("cuMemRelease");
}
CUresult cuMemAddressReserve(CUdeviceptr* out, size_t size, size_t alignment, CUdeviceptr at,
                             unsigned long long flags) {
  NOTE("cuMemAddressReserve", "%zu %zu %llu %llu", size, alignment, at, flags);
  *out = 0x7f0123456000ULL;
  DONE("cuMemAddressReserve");
}
CUresult cuMemAddressFree(CUdeviceptr at, size_t size) {
  NOTE("cuMemAddressFree", "%llx %zu", at, size);
  DONE("cuMemAddressFree");
}
CUresult cuMemMap(CUdeviceptr at, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags) {
  NOTE("cuMemMap", "%llx %zu %zu %llx %llu", at, size, offset, handle, flags);
  DONE("cuMemMap");
}
CUresult cuMemUnmap(CUdeviceptr at, size_t size) {
  NOTE("cuMemUnmap", "%llx %zu", at, size);
  DONE("cuMemUnmap");
}
CUresult cuMemSetAccess(CUdeviceptr at, size_t size, const CUmemAccessDesc* access, size_t count) {
  NOTE("cuMemSetAccess", "%llx %zu device %d id %d read_write %d count %zu", at, size,
       access->location.type == CU_MEM_LOCATION_TYPE_DEVICE, access->location.id,
       access->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE, count);
  DONE("cuMemSetAccess");
}
CUresult cuMemsetD8_v2(CUdeviceptr at, unsigned char value, size_t size) {
  NOTE("cuMemsetD8", "%llx %d %zu", at, value, size);
  DONE("cuMemsetD8");
}
CUresult cuMemExportToShareableHandle(void* out, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type,
                                      unsigned long long flags) {
  NOTE("cuMemExportToShareableHandle", "%llx type %d %llu", handle, type, flags);
  if (type == CU_MEM_HANDLE_TYPE_FABRIC)
    for (int i = 0; i < (int)sizeof(CUmemFabricHandle); ++i) ((unsigned char*)out)[i] = (unsigned char)(i & 3);
  else
    *(int*)out = 77;
  DONE("cuMemExportToShareableHandle");
}
CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle* out, void* handle,
                                        CUmemAllocationHandleType type) {
  unsigned sum = 0;
  if (type == CU_MEM_HANDLE_TYPE_FABRIC)
    for (int i = 0; i < (int)sizeof(CUmemFabricHandle); ++i) sum = sum * 5 + ((unsigned char*)handle)[i];
  else
    sum = (unsigned)(size_t)handle;
  NOTE("cuMemImportFromShareableHandle", "%u type %d", sum, type);
  *out = 0xabcdef0123456789ULL;
  DONE("cuMemImportFromShareableHandle");
}
CUresult cuMulticastCreate(CUmemGenericAllocationHandle* out, const CUmulticastObjectProp* prop) {
  NOTE("cuMulticastCreate", "");
  note_multicast(prop);
  *out = 0x8000000000000001ULL;
  DONE("cuMulticastCreate");
}
CUresult cuMulticastAddDevice(CUmemGenericAllocationHandle handle, CUdevice device) {
  NOTE("cuMulticastAddDevice", "%llx %d", handle, device);
  DONE("cuMulticastAddDevice");
}
CUresult cuMulticastBindMem(CUmemGenericAllocationHandle handle, size_t offset, CUmemGenericAllocationHandle memory,
                            size_t memory_offset, size_t size, unsigned long long flags) {
  NOTE("cuMulticastBindMem", "%llx %zu %llx %zu %zu %llu", handle, offset, memory, memory_offset, size, flags);
  DONE("cuMulticastBindMem");
}
CUresult cuMulticastUnbind(CUmemGenericAllocationHandle handle, CUdevice device, size_t offset, size_t size) {
  NOTE("cuMulticastUnbind", "%llx %d %zu %zu", handle, device, offset, size);
  DONE("cuMulticastUnbind");
}
