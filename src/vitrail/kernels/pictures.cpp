// Operations of augmentation policies on pictures of 8 bits, as Pillow computes them, to the last bit.
//
// A rotation weighs 4 or 16 pixels of each channel anew, in Pillow through a function for each pixel. Here the three
// channels of a pixel are one vector, in the same doubles and the same order, and a margin of repeated pixels spares
// every clipping. Colour operations go over a picture once, and keep no other picture of larger numbers.
//
// It does not use PyTorch's headers.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__SSE4_1__)
#include <smmintrin.h>
#endif

// every product is rounded before it is added, as in Pillow: fused ones would differ in the last digits
#if defined(__clang__)
#error "clang cannot be told so in a file that is compiled with -ffp-contract=fast; install g++"
#endif
#pragma GCC optimize("fp-contract=off")

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

// Pillow's gray level of a pixel
inline int32_t to_gray(const uint8_t* pixel) {
    return (pixel[0] * 19595 + pixel[1] * 38470 + pixel[2] * 7471 + 0x8000) >> 16;
}

inline uint8_t cut(float value) {
    return static_cast<uint8_t>(static_cast<int32_t>(std::min(std::max(value, 0.0f), 255.0f)));
}

inline uint8_t blend(float plain, uint8_t level, float factor) {
    return cut(plain + factor * (static_cast<float>(level) - plain));
}

constexpr int64_t kBlock = 64;

}  // namespace

// counts: how often each level is there, (3, 256)
extern "C" void vitrail_count_levels(const uint8_t* picture, int64_t pixels, int64_t* counts) {
    // two tables each, since equal neighbours would wait for each other
    std::vector<int32_t> even(768), odd(768);
    int64_t pixel = 0;
    for (; pixel + 1 < pixels; pixel += 2, picture += 6) {
        for (int64_t channel = 0; channel < 3; ++channel) {
            ++even[256 * channel + picture[channel]];
            ++odd[256 * channel + picture[3 + channel]];
        }
    }
    for (int64_t channel = 0; pixel < pixels && channel < 3; ++channel) ++even[256 * channel + picture[channel]];
    for (int64_t level = 0; level < 768; ++level) counts[level] = static_cast<int64_t>(even[level]) + odd[level];
}

// tables: (3, 256), the new level of each
extern "C" void vitrail_look_up(const uint8_t* picture, uint8_t* out, int64_t pixels, const uint8_t* tables) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel, picture += 3, out += 3) {
        out[0] = tables[picture[0]];
        out[1] = tables[256 + picture[1]];
        out[2] = tables[512 + picture[2]];
    }
}

extern "C" int64_t vitrail_sum_grays(const uint8_t* picture, int64_t pixels) {
    int64_t sum = 0;
    for (int64_t pixel = 0; pixel < pixels; ++pixel) sum += to_gray(picture + 3 * pixel);
    return sum;
}

// moves every level away from one, or towards it
extern "C" void vitrail_blend(const uint8_t* picture, uint8_t* out, int64_t levels, float plain, float factor) {
    for (int64_t level = 0; level < levels; ++level) out[level] = blend(plain, picture[level], factor);
}

// moves every pixel away from its gray, or towards it
extern "C" void vitrail_saturate(const uint8_t* picture, uint8_t* out, int64_t pixels, float factor) {
    float grays[3 * kBlock];
    for (int64_t first = 0; first < pixels; first += kBlock) {
        const int64_t count = std::min(kBlock, pixels - first);
        const uint8_t* from = picture + 3 * first;
        for (int64_t pixel = 0; pixel < count; ++pixel) {
            const float gray = static_cast<float>(to_gray(from + 3 * pixel));
            grays[3 * pixel] = grays[3 * pixel + 1] = grays[3 * pixel + 2] = gray;
        }
        uint8_t* to = out + 3 * first;
        for (int64_t level = 0; level < 3 * count; ++level) to[level] = blend(grays[level], from[level], factor);
    }
}

// out: (rows, length), each value a sum of taps that lie `step` bytes apart, from starts[row] on; weights: (rows, taps)
extern "C" void vitrail_filter_rows(const uint8_t* __restrict picture, uint8_t* __restrict out, int64_t rows,
                                    int64_t length, const int64_t* starts, int64_t step, const float* weights,
                                    int64_t taps, float rounding) {
    for (int64_t row = 0; row < rows; ++row, out += length, weights += taps) {
        const uint8_t *a = picture + starts[row], *b = a + step;
        if (taps == 2) {
            for (int64_t at = 0; at < length; ++at) out[at] = cut(weights[0] * a[at] + weights[1] * b[at] + rounding);
            continue;
        }
        const uint8_t *c = b + step, *d = c + step;
        for (int64_t at = 0; at < length; ++at) {
            const float value = weights[0] * a[at] + weights[1] * b[at] + weights[2] * c[at] + weights[3] * d[at];
            out[at] = cut(value + rounding);
        }
    }
}

// moves every pixel away from the mean of its neighbourhood, or towards it; the outermost stay what they are
extern "C" void vitrail_sharpen(const uint8_t* picture, uint8_t* out, int64_t height, int64_t width, float factor) {
    const int64_t stride = 3 * width;
    std::memcpy(out, picture, static_cast<size_t>(height * stride));
    if (height < 3 || width < 3) return;
    std::vector<uint16_t> sums(stride);
    for (int64_t row = 1; row + 1 < height; ++row) {
        const uint8_t* from = picture + row * stride;
        for (int64_t at = 0; at < stride; ++at) sums[at] = from[at - stride] + from[at] + from[at + stride];
        uint8_t* to = out + row * stride;
        for (int64_t at = 3; at + 3 < stride; ++at) {
            // neighbours of a channel are three bytes apart; sums of 13ths, rounded
            const uint32_t around = sums[at - 3] + sums[at] + sums[at + 3] + 4u * from[at];
            to[at] = blend(static_cast<float>((around + 6) / 13), from[at], factor);
        }
    }
}


// picture, out: (height, width, 3); matrix: where a pixel comes from, a x + b y + c and d x + e y + f
extern "C" void vitrail_rotate(const uint8_t* picture, uint8_t* out, int64_t height, int64_t width,
                               const double* matrix, const uint8_t* fill, int32_t is_cubic) {
    if (is_cubic) {
        transform<true>(picture, out, height, width, matrix, fill);
    } else {
        transform<false>(picture, out, height, width, matrix, fill);
    }
}
