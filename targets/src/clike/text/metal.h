// What the kernels use of Metal.
#include <metal_stdlib>
using namespace metal;
// Kernels do the operations of the nest language: nothing is reordered, and products and sums are fused only where the text says so.
#pragma METAL fp math_mode(safe)
#pragma METAL fp contract(off)
typedef long idx;

#define GLOBAL device
#define SHARED threadgroup
#define LOCAL thread
#define TABLE constant
#ifndef SHARED_ARRAY
#define SHARED_ARRAY(T, name, count) threadgroup T name[count]
#endif
#define UNROLL _Pragma("clang loop unroll(full)")
#define FN static inline
#define MEMBER static inline
#define KERNEL(threads) [[max_total_threads_per_threadgroup(threads)]] kernel void
#define PLACE const int gx = group.x, gy = group.y, gz = group.z, tid = thread_index;

FN float as_float(uint bits) { return as_type<float>(bits); }
FN uint as_uint(float x) { return as_type<uint>(x); }
FN float fused(float a, float b, float c) { return fma(a, b, c); }
FN float root(float x) { return precise::sqrt(x); }
FN void barrier() { threadgroup_barrier(mem_flags::mem_threadgroup); }
FN float lane_xor(float x, int mask) { return simd_shuffle_xor(x, (ushort)mask); }
FN int lane_xor(int x, int mask) { return simd_shuffle_xor(x, (ushort)mask); }
FN float lane_at(float x, int lane) { return simd_shuffle(x, (ushort)lane); }
FN float f16(ushort bits) { return (float)as_type<half>(bits); }
FN ushort to_f16(float x) { return as_type<ushort>((half)x); }

// Sixteen bytes in one load; `at` is a multiple of 16.
FN void load16(const GLOBAL uchar* at, LOCAL uint (&words)[4]) {
    const uint4 v = *(const GLOBAL uint4*)at;
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
}

// sin(x + turns * pi / 2). Metal has no f64: pi / 2 is taken off in three parts, whose products with n are fused and therefore exact
// up to the last; good to 2e-7 for arguments below a million.
FN float quarter_sine(float x, int turns) {
    const float magic = 12582912.0f;
    const float n = (x * 0.636619747f + magic) - magic;
    const int q = (int)n + turns;
    float r = fma(n, -1.57079637f, x);
    r = fma(n, 4.37113883e-8f, r);
    r = fma(n, 1.71512451e-15f, r);
    const float z = r * r;
    const float s = r + (z * r) * (-0.166666672f + z * (0.00833332911f + z * (-0.000198393347f + z * 2.71831141e-6f)));
    const float c = 1.0f + z * (-0.5f + z * (0.0416666232f + z * (-0.00138867635f + z * 2.43904487e-5f)));
    const float v = q & 1 ? c : s;
    return q & 2 ? -v : v;
}
