// Operations on tensors that lie channels last: instance normalisation with what follows it, and blocks of pixels. norm.rs and blocks.rs do the
// same on the CPU.
//
// Compiled by NVRTC when a GPU is first used, without any header, so that no toolkit has to be installed. Sums are taken in a fixed order,
// without atomics: the same input gives the same bits. emulate.cpp runs these kernels on a CPU.

typedef unsigned int u32;
typedef unsigned long long u64;

struct bf16 { unsigned short bits; };

__device__ inline float wide(float v) { return v; }
__device__ inline float wide(bf16 v) { return __uint_as_float((u32)v.bits << 16); }

__device__ inline void narrow(float v, float &to) { to = v; }
// To the nearest, ties to even; what is no number stays none.
__device__ inline void narrow(float v, bf16 &to) {
    u32 bits = __float_as_uint(v);
    to.bits = v != v ? (unsigned short)((bits >> 16) | 64) : (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#ifndef EMULATED
struct f16 { unsigned short bits; };
__device__ inline float wide(f16 v) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
    return wide;
}
__device__ inline void narrow(float v, f16 &to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(v)); }
#endif

// Neighbouring channels, read and written at once.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack { T v[V]; };

#define THREADS 256

// Mean and sum of squared differences from it, of each channel of a chunk of pixels: tiles x chunks x channels x 2.
// One block for each chunk (x) and tile (y). Neighbouring threads take neighbouring channels; where channels are few, several rows of threads
// share the chunk's pixels.
template <typename T, int V>
__device__ void moments(const T *x, float *partial, u32 pixels, u32 channels, u32 chunk) {
    __shared__ float shared[THREADS * 2 * V];
    const u32 groups = channels / V;
    const u32 columns = groups < THREADS ? groups : THREADS;
    const u32 rows = THREADS / columns;
    const u32 column = threadIdx.x % columns, row = threadIdx.x / columns;
    const u32 begin = blockIdx.x * chunk;
    const u32 end = begin + chunk < pixels ? begin + chunk : pixels;
    const T *tile = x + (u64)blockIdx.y * pixels * channels;
    for (u32 base = 0; base < groups; base += columns) {
        const u32 group = base + column;
        const bool active = row < rows && group < groups;
        float shift[V], sum[V], squares[V];
        for (int v = 0; v < V; v++) shift[v] = sum[v] = squares[v] = 0.f;
        if (active) {
            const Pack<T, V> first = *(const Pack<T, V> *)(tile + (u64)begin * channels + group * V);
            for (int v = 0; v < V; v++) shift[v] = wide(first.v[v]);
            for (u32 pixel = begin + row; pixel < end; pixel += rows) {
                const Pack<T, V> values = *(const Pack<T, V> *)(tile + (u64)pixel * channels + group * V);
                for (int v = 0; v < V; v++) {
                    const float difference = wide(values.v[v]) - shift[v];
                    sum[v] += difference;
                    squares[v] += difference * difference;
                }
            }
        }
        for (int v = 0; v < V; v++) {
            shared[(threadIdx.x * V + v) * 2] = sum[v];
            shared[(threadIdx.x * V + v) * 2 + 1] = squares[v];
        }
        __syncthreads();
        if (row == 0 && active) {
            const float count = (float)(end - begin);
            for (int v = 0; v < V; v++) {
                float all = 0.f, all_squares = 0.f;
                for (u32 r = 0; r < rows; r++) {
                    const u32 at = ((r * columns + column) * V + v) * 2;
                    all += shared[at];
                    all_squares += shared[at + 1];
                }
                const float rest = all_squares - all * all / count;
                const u64 to = (((u64)blockIdx.y * gridDim.x + blockIdx.x) * channels + group * V + v) * 2;
                partial[to] = shift[v] + all / count;
                partial[to + 1] = rest > 0.f ? rest : 0.f;
            }
        }
        __syncthreads();
    }
}

// Mean and factor of each channel of each tile: tiles x 2 x channels. One thread for each channel of each tile.
extern "C" __global__ void coefficients(const float *partial, const float *scale, float *to, u32 tiles, u32 pixels, u32 channels,
                                        u32 chunk, float epsilon) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= tiles * channels) return;
    const u32 tile = i / channels, channel = i % channels;
    const u32 chunks = (pixels + chunk - 1) / chunk;
    float count = 0.f, mean = 0.f, squares = 0.f;
    for (u32 c = 0; c < chunks; c++) {
        const u64 at = (((u64)tile * chunks + c) * channels + channel) * 2;
        const u32 begin = c * chunk;
        const float other = (float)((begin + chunk < pixels ? begin + chunk : pixels) - begin);
        const float all = count + other, share = other / all, difference = partial[at] - mean;
        mean += difference * share;
        squares += partial[at + 1] + difference * difference * count * share;
        count = all;
    }
    to[(u64)tile * 2 * channels + channel] = mean;
    to[(u64)tile * 2 * channels + channels + channel] = scale[channel] / sqrtf(squares / count + epsilon);
}

// leaky((x - mean) * factor + summand + residual), V channels of a pixel for each thread; `residual` may be null.
template <typename T, int V>
__device__ void apply(const T *x, const float *coefficients, const float *scale, const T *residual, T *to, u64 packs, u32 pixels,
                      u32 channels, float slope) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) return;
    const u32 groups = channels / V;
    const u32 channel = (u32)(i % groups) * V;
    const float *means = coefficients + i / ((u64)pixels * groups) * 2 * channels + channel;
    const float *factors = means + channels, *summands = scale + channels + channel;
    const Pack<T, V> values = ((const Pack<T, V> *)x)[i];
    Pack<T, V> rest, result;
    if (residual) rest = ((const Pack<T, V> *)residual)[i];
    for (int v = 0; v < V; v++) {
        float y = (wide(values.v[v]) - means[v]) * factors[v] + summands[v];
        if (residual) y += wide(rest.v[v]);
        narrow(y < 0.f ? y * slope : y, result.v[v]);
    }
    ((Pack<T, V> *)to)[i] = result;
}

// Each pixel's values become a block of pixels, and a bias is added, V channels for each thread: tiles x height x width x down x across x channels
// becomes tiles x (height * down) x (width * across) x channels.
template <typename T, int V>
__device__ void blocks(const T *x, const T *bias, T *to, u64 packs, u32 height, u32 width, u32 channels, u32 down, u32 across) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= packs) return;
    const u32 groups = channels / V;
    const u32 group = (u32)(i % groups);
    const u64 pixel = i / groups;
    const u32 column = (u32)(pixel % (width * across));
    // Counted through all tiles: the rows of a tile are a whole number of blocks.
    const u64 row = pixel / (width * across);
    const u64 source = (row / down * width + column / across) * down + row % down;
    const Pack<T, V> values = ((const Pack<T, V> *)x)[(source * across + column % across) * groups + group];
    Pack<T, V> result;
    for (int v = 0; v < V; v++) narrow(wide(values.v[v]) + wide(bias[group * V + v]), result.v[v]);
    ((Pack<T, V> *)to)[i] = result;
}

#define KERNELS(T, V)                                                                                                          \
    extern "C" __global__ void moments_##T##_##V(const T *x, float *partial, u32 pixels, u32 channels, u32 chunk) {            \
        moments<T, V>(x, partial, pixels, channels, chunk);                                                                    \
    }                                                                                                                          \
    extern "C" __global__ void apply_##T##_##V(const T *x, const float *coefficients, const float *scale, const T *residual,   \
                                               T *to, u64 packs, u32 pixels, u32 channels, float slope) {                      \
        apply<T, V>(x, coefficients, scale, residual, to, packs, pixels, channels, slope);                                     \
    }                                                                                                                          \
    extern "C" __global__ void blocks_##T##_##V(const T *x, const T *bias, T *to, u64 packs, u32 height, u32 width,            \
                                                u32 channels, u32 down, u32 across) {                                          \
        blocks<T, V>(x, bias, to, packs, height, width, channels, down, across);                                               \
    }

typedef float f32;
KERNELS(f32, 4)
KERNELS(f32, 1)
KERNELS(bf16, 4)
KERNELS(bf16, 1)
#ifndef EMULATED
KERNELS(f16, 4)
KERNELS(f16, 1)
#endif
