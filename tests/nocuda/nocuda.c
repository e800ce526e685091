/* A CUDA runtime, driver and cuBLAS that have devices and memory and compute nothing. Not a GPU.

   Memory is host memory, zero until something is copied into it; kernels do nothing; copies up to NOCUDA_COPY_BYTES
   are made, all of them by default. NOCUDA_DEVICES, NOCUDA_NAME, NOCUDA_CC (90 is 9.0), NOCUDA_MEM (bytes) and
   NOCUDA_DRIVER (12060 is CUDA 12.6) choose what is there. What torch wants and this file lacks is added as functions
   that return 0: build.py. NCCL is nccl.c. */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096ul
#define ARENA (1ul << 42)

static __thread int current = 0;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static long setting(const char *name, long otherwise) {
  const char *value = getenv(name);
  return value ? atol(value) : otherwise;
}
static size_t memory(void) { return setting("NOCUDA_MEM", 80l * 1000 * 1000 * 1000); }
static long capability(void) { return setting("NOCUDA_CC", 80); }
static void *handle(void) { return calloc(1, 256); }

/* Device memory: one reserved range of addresses, given out once; a page before each block says how large it is. */
static char *arena = 0;
static size_t next = 0, used = 0;

static int on_device(const void *p) { return arena && (char *)p >= arena && (char *)p < arena + ARENA; }

cudaError_t cudaMalloc(void **p, size_t n) {
  size_t pages = (n + PAGE - 1) / PAGE * PAGE;
  *p = 0;
  pthread_mutex_lock(&lock);
  if (!arena) {
    arena = mmap(0, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED) {
      perror("no-op CUDA cannot reserve addresses");
      abort();
    }
  }
  if (used + n <= memory() && next + pages + PAGE <= ARENA) {
    *(size_t *)(arena + next) = n;
    *p = arena + next + PAGE;
    next += pages + PAGE;
    used += n;
  }
  pthread_mutex_unlock(&lock);
  return *p ? 0 : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void *p) {
  if (!p) return 0;
  char *header = (char *)p - PAGE;
  pthread_mutex_lock(&lock);
  size_t n = *(size_t *)header;
  used -= n;
  madvise(header, PAGE + (n + PAGE - 1) / PAGE * PAGE, MADV_DONTNEED);
  pthread_mutex_unlock(&lock);
  return 0;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  *total = memory();
  *free_bytes = *total - used;
  return 0;
}

/* Pinned host memory: a list, for cudaPointerGetAttributes. */
typedef struct { char *begin; size_t bytes; } Span;
static Span *pinned = 0;
static int n_pinned = 0, room = 0;

static void pin(void *p, size_t n) {
  pthread_mutex_lock(&lock);
  int i = 0;
  while (i < n_pinned && pinned[i].begin) i++;
  if (i == n_pinned && n_pinned++ == room) pinned = realloc(pinned, sizeof(Span) * (room = 2 * room + 64));
  pinned[i] = (Span){p, n};
  pthread_mutex_unlock(&lock);
}
static void unpin(void *p) {
  pthread_mutex_lock(&lock);
  for (int i = 0; i < n_pinned; i++)
    if (pinned[i].begin == p) pinned[i].begin = 0;
  pthread_mutex_unlock(&lock);
}
static int is_pinned(const char *p) {
  int found = 0;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < n_pinned && !found; i++)
    found = pinned[i].begin && p >= pinned[i].begin && p < pinned[i].begin + pinned[i].bytes;
  pthread_mutex_unlock(&lock);
  return found;
}
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags) { pin(*p = calloc(1, n), n); return 0; }
cudaError_t cudaFreeHost(void *p) { unpin(p); free(p); return 0; }
cudaError_t cudaHostRegister(void *p, size_t n, unsigned flags) { pin(p, n); return 0; }
cudaError_t cudaHostUnregister(void *p) { unpin(p); return 0; }
cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned flags) { *device = host; return 0; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  a->type = on_device(p) ? cudaMemoryTypeDevice : is_pinned(p) ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  a->device = a->type == cudaMemoryTypeUnregistered ? -1 : 0;
  if (a->type != cudaMemoryTypeUnregistered) a->devicePointer = a->hostPointer = (void *)p;
  return 0;
}

static cudaError_t copy(void *to, const void *from, size_t n) {
  if ((long)n <= setting("NOCUDA_COPY_BYTES", 1l << 60)) memmove(to, from, n);
  return 0;
}
cudaError_t cudaMemcpy(void *d, const void *s, size_t n, enum cudaMemcpyKind k) { return copy(d, s, n); }
cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t t) { return copy(d, s, n); }
cudaError_t cudaMemcpyPeerAsync(void *d, int a, const void *s, int b, size_t n, cudaStream_t t) { return copy(d, s, n); }
cudaError_t cudaMemset(void *d, int v, size_t n) {
  if ((long)n <= setting("NOCUDA_COPY_BYTES", 1l << 60)) memset(d, v, n);
  return 0;
}
cudaError_t cudaMemsetAsync(void *d, int v, size_t n, cudaStream_t t) { return cudaMemset(d, v, n); }

/* Devices */
cudaError_t cudaDriverGetVersion(int *v) { *v = setting("NOCUDA_DRIVER", RUNTIME_VERSION); return 0; }
cudaError_t cudaRuntimeGetVersion(int *v) { *v = RUNTIME_VERSION; return 0; }
cudaError_t cudaGetDeviceCount(int *n) {
  *n = setting("NOCUDA_DEVICES", 1);
  return setting("NOCUDA_DRIVER", RUNTIME_VERSION) / 1000 < RUNTIME_VERSION / 1000 ? cudaErrorInsufficientDriver : 0;
}
cudaError_t cudaGetDevice(int *d) { *d = current; return 0; }
cudaError_t cudaSetDevice(int d) { current = d; return 0; }
static cudaError_t properties(struct cudaDeviceProp *p) {
  const char *name = getenv("NOCUDA_NAME");
  memset(p, 0, sizeof *p);
  strncpy(p->name, name ? name : "no-op CUDA, not a GPU", sizeof p->name - 1);
  p->major = capability() / 10;
  p->minor = capability() % 10;
  p->totalGlobalMem = memory();
  p->multiProcessorCount = 108;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxThreadsPerBlock = 1024;
  p->warpSize = 32;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 166912;
  p->sharedMemPerMultiprocessor = 167936;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->maxBlocksPerMultiProcessor = 32;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->l2CacheSize = 41943040;
  p->unifiedAddressing = p->canMapHostMemory = p->concurrentKernels = p->managedMemory = 1;
  p->textureAlignment = 512;
  p->asyncEngineCount = 3;
  p->memoryBusWidth = 5120;
  return 0;
}
cudaError_t cudaGetDeviceProperties_v2(struct cudaDeviceProp *p, int d) { return properties(p); }
#undef cudaGetDeviceProperties /* CUDA 13 has it without a version */
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) { return properties(p); }
cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) {
  switch ((int)a) {
    case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
    case cudaDevAttrMaxGridDimX: *v = 2147483647; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *v = 65535; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = 49152; break;
    case cudaDevAttrWarpSize: *v = 32; break;
    case cudaDevAttrMultiProcessorCount: *v = 108; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *v = 2048; break;
    case cudaDevAttrComputeCapabilityMajor: *v = capability() / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *v = capability() % 10; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *v = 167936; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = 166912; break;
    default: *v = 1;
  }
  return 0;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *low, int *high) { *low = 0; *high = -5; return 0; }
cudaError_t cudaDeviceCanAccessPeer(int *v, int a, int b) { *v = 1; return 0; }
cudaError_t cudaDeviceGetPCIBusId(char *s, int n, int d) { snprintf(s, n, "0000:%02d:00.0", d); return 0; }

/* Streams and events: everything has happened */
cudaError_t cudaStreamCreate(cudaStream_t *s) { *s = handle(); return 0; }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) { *s = handle(); return 0; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *c) { *c = 0; return 0; }
cudaError_t cudaStreamGetCaptureInfo_v2(cudaStream_t s, enum cudaStreamCaptureStatus *c, unsigned long long *id,
                                        cudaGraph_t *g, const cudaGraphNode_t **d, size_t *n) {
  *c = 0;
  if (id) *id = 0;
  return 0;
}
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) { *p = 0; return 0; }
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *m) { return 0; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = handle(); return 0; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { *e = handle(); return 0; }
cudaError_t cudaEventDestroy(cudaEvent_t e) { free(e); return 0; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1; return 0; }
const char *cudaGetErrorString(cudaError_t e) {
  switch ((int)e) {
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    default: return "no-op CUDA";
  }
}
const char *cudaGetErrorName(cudaError_t e) { return "no-op CUDA"; }

/* Kernels */
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 32;
  a->binaryVersion = a->ptxVersion = capability();
  return 0;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int b, size_t s) { *n = 2; return 0; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s, unsigned g) {
  *n = 2;
  return 0;
}
cudaError_t cudaGetDriverEntryPoint(const char *name, void **f, unsigned long long flags,
                                    enum cudaDriverEntryPointQueryResult *r) {
  *f = 0;
  if (r) *r = cudaDriverEntryPointSymbolNotFound;
  return 0;
}
static __thread struct { dim3 grid, block; size_t shared; void *stream; } launch;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  launch.grid = grid, launch.block = block, launch.shared = shared, launch.stream = stream;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = launch.grid, *block = launch.block, *shared = launch.shared, *(void **)stream = launch.stream;
  return 0;
}
void **__cudaRegisterFatBinary(void *f) { return handle(); }

/* Driver: what torch and Triton ask it */
int cuDeviceGet(int *d, int n) { *d = n; return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { return cudaDeviceGetAttribute(v, a, d); }
int cuDevicePrimaryCtxGetState(int d, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)1; return 0; }
int cuCtxGetCurrent(void **c) { *c = (void *)1; return 0; }
int cuCtxGetLimit(size_t *v, int l) { *v = 1 << 20; return 0; }
int cuGetErrorString(int e, const char **s) { *s = "no-op CUDA"; return 0; }
int cuModuleLoadData(void **m, const void *image) { *m = handle(); return 0; }
int cuModuleGetFunction(void **f, void *m, const char *name) { *f = handle(); return 0; }
int cuFuncGetAttribute(int *v, int a, void *f) { *v = a == 4 ? 32 : 0; return 0; } /* 4: registers */
int cuPointerGetAttribute(void *data, int a, unsigned long long p) { *(unsigned long long *)data = p; return 0; }
int cuOccupancyMaxActiveClusters(int *n, void *f, void *c) { *n = 1; return 0; }
/* Triton finds these by name, and nothing else asks for them. */
int cuInit(unsigned f) { return 0; }
int cuFuncSetCacheConfig(void *f, int c) { return 0; }
int cuCtxSetLimit(int l, size_t v) { return 0; }
int cuLaunchKernelEx(void *c, void *f, void **k, void **e) { return 0; }

/* cuBLAS */
int cublasCreate_v2(void **h) { *h = handle(); return 0; }
int cublasGetMathMode(void *h, int *m) { *m = 0; return 0; }
int cublasGetPointerMode_v2(void *h, int *m) { *m = 0; return 0; }
int cublasLtMatmulDescCreate(void **d, int a, int b) { *d = handle(); return 0; }
int cublasLtMatmulPreferenceCreate(void **d) { *d = handle(); return 0; }
int cublasLtMatrixLayoutCreate(void **d, int t, unsigned long r, unsigned long c, long l) { *d = handle(); return 0; }
int cublasLtMatmulAlgoGetHeuristic(void *h, void *o, void *a, void *b, void *c, void *d, void *p, int n, void *r,
                                   int *found) {
  *found = 1;
  return 0;
}
