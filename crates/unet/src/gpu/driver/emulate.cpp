// Runs the kernels of kernels.cu on a CPU, for a test where there is no GPU: a thread for each thread of a block, block after block.
//
// usage: emulate f32|bf16 TOGETHER TILES PIXELS CHANNELS CHUNK EPSILON SLOPE residual|none < INPUT > OUTPUT
//        emulate f32|bf16 TOGETHER TILES HEIGHT CHANNELS WIDTH DOWN ACROSS blocks < INPUT > OUTPUT
//
// TOGETHER is 4 or 1: how many channels a thread takes at once. INPUT holds little-endian f32: the tensor (tiles x pixels x channels), factors,
// summands, and the residual if there is one; or the tensor (tiles x height x width x blocks x channels) and a bias. OUTPUT is the result.

#include <barrier>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#define EMULATED
#define __device__
#define __global__
#define __shared__ static

struct Index { unsigned x, y; };
static thread_local Index threadIdx;
static Index blockIdx, blockDim, gridDim;
static std::barrier<> *everybody;

static void __syncthreads() { everybody->arrive_and_wait(); }
static float __uint_as_float(unsigned bits) { float v; memcpy(&v, &bits, 4); return v; }
static unsigned __float_as_uint(float v) { unsigned bits; memcpy(&bits, &v, 4); return bits; }

#include "kernels.cu"

static void launch(unsigned x, unsigned y, std::function<void()> kernel) {
    blockDim = {THREADS, 1};
    gridDim = {x, y};
    std::barrier<> barrier(THREADS);
    everybody = &barrier;
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < THREADS; t++)
        threads.emplace_back([&, t] {
            threadIdx = {t, 0};
            for (unsigned by = 0; by < y; by++)
                for (unsigned bx = 0; bx < x; bx++) {
                    if (t == 0) blockIdx = {bx, by};
                    __syncthreads();
                    kernel();
                    __syncthreads();
                }
        });
    for (auto &thread : threads) thread.join();
}

static std::vector<float> read(size_t count) {
    std::vector<float> values(count);
    if (fread(values.data(), 4, count, stdin) != count) { fputs("too little input\n", stderr); exit(1); }
    return values;
}

template <typename T> static std::vector<T> narrowed(const std::vector<float> &values) {
    std::vector<T> narrow_values(values.size());
    for (size_t i = 0; i < values.size(); i++) narrow(values[i], narrow_values[i]);
    return narrow_values;
}

template <typename T> static void write(const std::vector<T> &output) {
    for (const T &value : output) {
        const float v = wide(value);
        fwrite(&v, 4, 1, stdout);
    }
}

template <typename T, int V> static void run_blocks(char **a) {
    const unsigned tiles = atoi(a[3]), height = atoi(a[4]), channels = atoi(a[5]), width = atoi(a[6]), down = atoi(a[7]), across = atoi(a[8]);
    const size_t count = (size_t)tiles * height * width * down * across * channels;
    const auto x = narrowed<T>(read(count));
    const auto bias = narrowed<T>(read(channels));
    std::vector<T> output = narrowed<T>(std::vector<float>(count, NAN));
    const u64 packs = count / V;
    launch((packs + THREADS - 1) / THREADS, 1,
           [&] { blocks<T, V>(x.data(), bias.data(), output.data(), packs, height, width, channels, down, across); });
    write(output);
}

template <typename T, int V> static void run(char **a) {
    if (!strcmp(a[9], "blocks")) return run_blocks<T, V>(a);
    const unsigned tiles = atoi(a[3]), pixels = atoi(a[4]), channels = atoi(a[5]), chunk = atoi(a[6]);
    const float epsilon = atof(a[7]), slope = atof(a[8]);
    const size_t count = (size_t)tiles * pixels * channels;
    const auto x = narrowed<T>(read(count));
    const auto scale = read(2 * channels);
    std::vector<T> residual;
    if (!strcmp(a[9], "residual")) residual = narrowed<T>(read(count));
    const unsigned chunks = (pixels + chunk - 1) / chunk;
    // What is not written would be seen.
    std::vector<float> partial((size_t)tiles * chunks * channels * 2, NAN), factors(2 * tiles * channels, NAN);
    std::vector<T> output = narrowed<T>(std::vector<float>(count, NAN));
    launch(chunks, tiles, [&] { moments<T, V>(x.data(), partial.data(), pixels, channels, chunk); });
    launch((tiles * channels + THREADS - 1) / THREADS, 1,
           [&] { coefficients(partial.data(), scale.data(), factors.data(), tiles, pixels, channels, chunk, epsilon); });
    const u64 packs = count / V;
    launch((packs + THREADS - 1) / THREADS, 1, [&] {
        apply<T, V>(x.data(), factors.data(), scale.data(), residual.empty() ? nullptr : residual.data(), output.data(), packs, pixels, channels, slope);
    });
    write(output);
}

int main(int count, char **a) {
    if (count != 10) { fputs("usage: see the source\n", stderr); return 2; }
    const bool half = !strcmp(a[1], "bf16"), together = !strcmp(a[2], "4");
    if (half && together) run<bf16, 4>(a);
    else if (half) run<bf16, 1>(a);
    else if (together) run<f32, 4>(a);
    else run<f32, 1>(a);
}
