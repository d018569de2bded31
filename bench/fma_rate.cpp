// Float32 FMA rate of this machine: prints GFLOP/s of N threads (argument 1), best of five runs.
// Each thread keeps 12 independent vectors of accumulators in registers, enough to hide the latency
// of two FMA units.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vec __attribute__((vector_size(kBytes)));
constexpr int kLanes = kBytes / 4, kChains = 12;
// Some 50 ms: threads that begin on one core are apart long before the end.
constexpr long kSteps = 30'000'000;

static void run(float seed, float* out) {
  Vec sums[kChains], a = Vec{} + seed, b = Vec{} + (1 - seed);
  for (int i = 0; i < kChains; ++i) sums[i] = Vec{} + float(i);
  for (long step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * a + b;
  }
  Vec total{};
  for (int i = 0; i < kChains; ++i) total += sums[i];
  *out = total[0];
}

int main(int argc, char** argv) {
  const int count = argc > 1 ? std::atoi(argv[1]) : 1;
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    std::vector<float> outs(count);
    std::vector<std::thread> threads;
    const auto start = std::chrono::steady_clock::now();
    for (int t = 0; t < count; ++t) threads.emplace_back(run, 0.5f + argc * 1e-3f, &outs[t]);
    for (auto& thread : threads) thread.join();
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    const double rate = 2.0 * kLanes * kChains * kSteps * count / time.count() * 1e-9;
    if (outs[0] != 0 && rate > best) best = rate;
  }
  std::printf("%.2f\n", best);
}
