// Rotation of a picture as Pillow's affine transform computes it, to the last bit, for the policies of augmentation.
//
// Pillow weighs 4 or 16 pixels of each channel anew, through a function for each pixel. Here the three channels of a
// pixel are one vector, in the same doubles and the same order, and a margin of repeated pixels spares every clipping.
//
// It does not use PyTorch's headers.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__SSE4_1__)
#include <smmintrin.h>
#endif

// every product is rounded before it is added, as in Pillow: fused ones would differ in the last digits
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off")
#endif

namespace {

typedef double Channels __attribute__((vector_size(32)));
typedef int32_t Whole __attribute__((vector_size(16)));
typedef uint8_t Bytes __attribute__((vector_size(4)));

constexpr int64_t kMargin = 2;

inline Channels read(const uint32_t* pixel) {
#if defined(__SSE4_1__)
    // compilers take the general form below apart, byte by byte
    const Whole whole = reinterpret_cast<Whole>(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(static_cast<int>(*pixel))));
    return __builtin_convertvector(whole, Channels);
#else
    Bytes bytes;
    std::memcpy(&bytes, pixel, 4);
    return __builtin_convertvector(__builtin_convertvector(bytes, Whole), Channels);
#endif
}

inline Channels cubic(Channels a, Channels b, Channels c, Channels d, double part) {
    const Channels p1 = b;
    const Channels p2 = -a + c;
    const Channels p3 = 2.0 * (a - b) + c - d;
    const Channels p4 = -a + b - c + d;
    return p1 + part * (p2 + part * (p3 + part * p4));
}

inline Channels cubic_row(const uint32_t* first, double part) {
    return cubic(read(first), read(first + 1), read(first + 2), read(first + 3), part);
}

inline Channels linear_row(const uint32_t* first, double part) {
    const Channels a = read(first), b = read(first + 1);
    return a + (b - a) * part;
}

template <bool kCubic>
inline Channels sample(const uint32_t* wide, int64_t stride, double x, double y) {
    const int64_t column = static_cast<int64_t>(std::floor(x)), row = static_cast<int64_t>(std::floor(y));
    const double across = x - static_cast<double>(column), down = y - static_cast<double>(row);
    if (kCubic) {
        const uint32_t* first = wide + (row - 1 + kMargin) * stride + column - 1 + kMargin;
        return cubic(cubic_row(first, across), cubic_row(first + stride, across), cubic_row(first + 2 * stride, across),
                     cubic_row(first + 3 * stride, across), down);
    }
    const uint32_t* first = wide + (row + kMargin) * stride + column + kMargin;
    const Channels above = linear_row(first, across), below = linear_row(first + stride, across);
    return above + (below - above) * down;
}

inline uint8_t cut(double value) {
    return value <= 0.0 ? 0 : value >= 255.0 ? 255 : static_cast<uint8_t>(value);
}

// a picture of four bytes a pixel with its outermost pixels repeated around it
std::vector<uint32_t> widen(const uint8_t* picture, int64_t height, int64_t width) {
    const int64_t stride = width + 2 * kMargin;
    std::vector<uint32_t> wide((height + 2 * kMargin) * stride);
    for (int64_t row = 0; row < height; ++row) {
        uint32_t* to = wide.data() + (row + kMargin) * stride;
        const uint8_t* from = picture + row * width * 3;
        for (int64_t column = 0; column < width; ++column) {
            to[column + kMargin] = from[3 * column] | from[3 * column + 1] << 8 | from[3 * column + 2] << 16;
        }
        for (int64_t beside = 0; beside < kMargin; ++beside) {
            to[beside] = to[kMargin];
            to[width + kMargin + beside] = to[width + kMargin - 1];
        }
    }
    for (int64_t beside = 0; beside < kMargin; ++beside) {
        std::memcpy(&wide[beside * stride], &wide[kMargin * stride], stride * 4);
        std::memcpy(&wide[(height + kMargin + beside) * stride], &wide[(height + kMargin - 1) * stride], stride * 4);
    }
    return wide;
}

template <bool kCubic>
void transform(const uint8_t* picture, uint8_t* out, int64_t height, int64_t width, const double* matrix,
               const uint8_t* fill) {
    const int64_t stride = width + 2 * kMargin;
    const std::vector<uint32_t> wide = widen(picture, height, width);
    for (int64_t row = 0; row < height; ++row) {
        const double down = static_cast<double>(row) + 0.5;
        for (int64_t column = 0; column < width; ++column, out += 3) {
            const double across = static_cast<double>(column) + 0.5;
            const double x = matrix[0] * across + matrix[1] * down + matrix[2];
            const double y = matrix[3] * across + matrix[4] * down + matrix[5];
            if (x < 0.0 || x >= static_cast<double>(width) || y < 0.0 || y >= static_cast<double>(height)) {
                std::memcpy(out, fill, 3);
                continue;
            }
            const Channels value = sample<kCubic>(wide.data(), stride, x - 0.5, y - 0.5);
            out[0] = cut(value[0]);
            out[1] = cut(value[1]);
            out[2] = cut(value[2]);
        }
    }
}

}  // namespace

// picture, out: (height, width, 3); matrix: where a pixel comes from, a x + b y + c and d x + e y + f
extern "C" void vitrail_rotate(const uint8_t* picture, uint8_t* out, int64_t height, int64_t width,
                               const double* matrix, const uint8_t* fill, int32_t is_cubic) {
    if (is_cubic) {
        transform<true>(picture, out, height, width, matrix, fill);
    } else {
        transform<false>(picture, out, height, width, matrix, fill);
    }
}
