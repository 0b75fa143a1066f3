// What the kernels use of CUDA. Nothing is included, so that NVRTC compiles this text alone.
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef long long idx;

#define GLOBAL
#define SHARED
#define LOCAL
#define TABLE static __device__ const
#ifndef SHARED_ARRAY
#define SHARED_ARRAY(T, name, count) __shared__ T name[count]
#endif
#define UNROLL _Pragma("unroll")
#define FN static __device__ __forceinline__
#define MEMBER static __device__ __forceinline__
// A multiprocessor needs room for one workgroup only: without the second number the compiler spills registers to make room for one more.
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)
#define PLACE const int gx = blockIdx.x, gy = blockIdx.y, gz = blockIdx.z, tid = threadIdx.x;

FN float as_float(uint bits) { return __uint_as_float(bits); }
FN uint as_uint(float x) { return __float_as_uint(x); }
FN float fused(float a, float b, float c) { return fmaf(a, b, c); }
FN float root(float x) { return sqrtf(x); }
FN void barrier() { __syncthreads(); }
FN float lane_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
FN int lane_xor(int x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
FN float lane_at(float x, int lane) { return __shfl_sync(0xffffffffu, x, lane); }

FN float f16(ushort bits) {
#ifdef __CUDA_ARCH__
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
#else
    return shim::f16_to_f32(bits);
#endif
}
FN ushort to_f16(float x) {
#ifdef __CUDA_ARCH__
    ushort bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#else
    return shim::f32_to_f16(x);
#endif
}

// Sixteen bytes in one load; `at` is a multiple of 16.
FN void load16(const GLOBAL uchar* at, LOCAL uint (&words)[4]) {
    const uint4 v = *(const uint4*)at;
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
}

// sin(x + turns * pi / 2), the operations of the CPU's kernels in their order.
FN float quarter_sine(float x, int turns) {
    const double magic = 6755399441055744.0;
    const double t = (double)x * 0.63661977236758134 + magic, n = t - magic;
    const int q = (int)__double_as_longlong(t) + turns;
    const double r = ((double)x - n * 1.5707963267341256) - n * 6.077100506506192e-11, z = r * r;
    const double s = r + (z * r) * (-0.16666666641626524 + z * (0.008333329385889463 + z * (-0.00019839334836096632 + z * 0.000002718311493989822)));
    const double c = 1.0 + z * (-0.499999997251031 + z * (0.04166662332373906 + z * (-0.001388676377460993 + z * 0.00002439044879627741)));
    const double v = q & 1 ? c : s;
    return (float)(q & 2 ? -v : v);
}
