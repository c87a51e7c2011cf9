// The inner residuals of a TNT block, forward and backward, with nothing of a sentence outside of the caches.
//
// Lanes of a vector are words: a channel of some words is one vector, so that norms, softmax and GELU need no sums
// within a vector, and a linear layer is a sum of vectors times single weights. A group of LANES words, which is one
// sentence or several, goes through the whole block before the next one is read. The backward pass keeps the words
// that went in, and computes the rest again.
//
// Arrays of a group have a row of LANES numbers a channel. It is compiled on the machine that runs it, for its
// processor, by GCC or Clang.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
constexpr int TILE = 8;
#else
constexpr int WIDTH = 8;
constexpr int TILE = 4;
#endif
constexpr int VECTORS = 2;              // vectors of a row
constexpr int LANES = WIDTH * VECTORS;  // words of a group
constexpr int CHUNKS = 32;              // parts of a call, whose sums of gradients are added in their order

typedef float Vec __attribute__((vector_size(WIDTH * 4)));
typedef int32_t Ints __attribute__((vector_size(WIDTH * 4)));
typedef uint16_t Halves __attribute__((vector_size(WIDTH * 2)));

// Vectors

inline Vec load(const float* from) {
    Vec v;
    std::memcpy(&v, from, sizeof(v));
    return v;
}

inline void store(float* to, Vec v) { std::memcpy(to, &v, sizeof(v)); }

inline Vec all(float x) { return x - Vec{}; }

inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

inline Vec as_floats(Ints i) { return (Vec)i; }

// lanes of a vector that change places with those of another, DISTANCE rows and lanes away
template <int DISTANCE, bool LATER>
inline Ints exchanged() {
    Ints from = {};
    for (int l = 0; l < WIDTH; l++) {
        const bool is_later = l & DISTANCE;
        if (LATER)
            from[l] = is_later ? WIDTH + l : l + DISTANCE;
        else
            from[l] = is_later ? WIDTH + l - DISTANCE : l;
    }
    return from;
}

template <int DISTANCE>
inline void exchange(Vec* rows) {
    const Ints earlier = exchanged<DISTANCE, false>(), later = exchanged<DISTANCE, true>();
#pragma GCC unroll 16
    for (int i = 0; i < WIDTH; i++) {
        if (i & DISTANCE) continue;
        const Vec a = rows[i], b = rows[i + DISTANCE];
        rows[i] = __builtin_shuffle(a, b, earlier);
        rows[i + DISTANCE] = __builtin_shuffle(a, b, later);
    }
}

inline void transpose(Vec* rows) {
    if (WIDTH == 16) exchange<8>(rows);
    exchange<4>(rows);
    exchange<2>(rows);
    exchange<1>(rows);
}

// a square of WIDTH rows and columns, of which `rows` are there, to one whose rows are its columns
inline void transpose_square(const float* in, int64_t next, int64_t rows, float* out, int64_t next_out) {
    Vec square[WIDTH];
    for (int64_t i = 0; i < WIDTH; i++) square[i] = i < rows ? load(in + i * next) : Vec{};
    transpose(square);
    for (int64_t i = 0; i < WIDTH; i++) store(out + i * next_out, square[i]);
}

// exp to 1e-7 of its value; 0 far below, and NaN of NaN
inline Vec exponential(Vec x) {
    x = x < -87.0f ? all(-87.0f) : x;
    x = x > 88.0f ? all(88.0f) : x;
    const float magic = 12582912.0f;  // whose last bit is worth 1
    const Vec shifted = x * 1.4426950408889634f + magic;
    const Vec n = shifted - magic;
    const Vec r = x - n * 0.693145751953125f - n * 1.428606765330187e-06f;
    Vec p = all(0.0013824818879768904f);
    p = p * r + 0.008371565624834617f;
    p = p * r + 0.04166823597315587f;
    p = p * r + 0.16666460530255967f;
    p = p * r + 0.49999993055906083f;
    p = p * r + 1.0000000269411533f;
    p = p * r + 1.0000000004128153f;
    const Ints exponent = ((Ints)shifted - 0x4B400000 + 127) << 23;
    return p * as_floats(exponent);
}

struct Gelu {
    Vec value, slope;
};

// x times the distribution function of a normal variable, whose tail is exp(-x^2 / 2) times a polynomial of
// 1 / (1 + 0.47 x / sqrt(2)), fitted to 3e-8 of the function
inline Gelu gelu_erf(Vec x, bool with_slope) {
    const Vec size = x < 0.0f ? -x : x;
    const Vec density = exponential(-0.5f * x * x);
    const Vec t = 1.0f / (1.0f + 0.33234018715767733f * size);
    Vec q = all(0.08561788403669565f);
    q = q * t - 0.40880909925614717f;
    q = q * t + 0.5882932102913043f;
    q = q * t - 0.10993323205869993f;
    q = q * t + 0.3291652812282315f;
    q = q * t + 0.24943918420396083f;
    q = q * t + 0.266226754670164f;
    const Vec tail = 0.5f * density * q * t;
    const Vec share = x < 0.0f ? tail : 1.0f - tail;
    Gelu result;
    result.value = x * share;
    result.slope = with_slope ? share + x * density * 0.3989422804014327f : share;
    return result;
}

inline Gelu gelu_tanh(Vec x, bool with_slope) {
    const float a = 0.7978845608028654f, b = 0.044715f;
    const Vec inner = a * (x + b * x * x * x);
    // 1 - 2 / (e + 1) where e is the exponential of twice the inner number
    const Vec share = 1.0f - 1.0f / (exponential(2.0f * inner) + 1.0f);
    Gelu result;
    result.value = x * share;
    result.slope = share;
    if (with_slope) result.slope = share + x * 2.0f * share * (1.0f - share) * a * (1.0f + 3.0f * b * x * x);
    return result;
}

// What a call is of

struct Shape {
    int64_t words;     // of a sentence
    int64_t channels;  // of a word
    int64_t heads;
    int64_t hidden;
    float eps;
    int32_t tanh;
    int32_t whole;  // whether norms are over all words of a sentence, with a weight for each number of it

    int64_t normed() const { return whole ? words * channels : channels; }
};

// All weights in float32, one behind the other; biases that a model lacks are zeros
struct Weights {
    const float *norm1_scale, *norm1_shift, *qkv, *proj, *proj_bias, *norm2_scale, *norm2_shift, *fc1, *fc1_bias, *fc2,
        *fc2_bias;

    Weights(const float* at, const Shape& s) {
        const int64_t e = s.channels, h = s.hidden, n = s.normed();
        auto take = [&at](int64_t count) {
            const float* here = at;
            at += count;
            return here;
        };
        norm1_scale = take(n), norm1_shift = take(n), qkv = take(3 * e * e), proj = take(e * e), proj_bias = take(e);
        norm2_scale = take(n), norm2_shift = take(n), fc1 = take(h * e), fc1_bias = take(h), fc2 = take(e * h);
        fc2_bias = take(e);
    }

    static int64_t count(const Shape& s) {
        const int64_t e = s.channels, h = s.hidden;
        return 4 * e * e + 2 * h * e + 4 * s.normed() + 2 * e + h;
    }
};

// Linear layers of a group: rows of `in` to rows of `out`

template <int ROWS>
inline void linear_rows(
    const float* in, int64_t count, const float* weights, int64_t next_out, int64_t next_in, const float* bias,
    float* out, bool add) {
    Vec sums[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) {
            sums[r][v] = add ? load(out + r * LANES + v * WIDTH) : all(bias ? bias[r] : 0.0f);
        }
    for (int64_t i = 0; i < count; i++) {
        Vec x[VECTORS];
        for (int v = 0; v < VECTORS; v++) x[v] = load(in + i * LANES + v * WIDTH);
        for (int r = 0; r < ROWS; r++) {
            const Vec w = all(weights[r * next_out + i * next_in]);
            for (int v = 0; v < VECTORS; v++) sums[r][v] += w * x[v];
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++) store(out + r * LANES + v * WIDTH, sums[r][v]);
}

void linear_any(
    const float* in, int64_t count, const float* weights, int64_t next_out, int64_t next_in, const float* bias,
    float* out, int64_t rows, bool add) {
    int64_t r = 0;
    for (; r + TILE <= rows; r += TILE)
        linear_rows<TILE>(in, count, weights + r * next_out, next_out, next_in, bias ? bias + r : nullptr,
                          out + r * LANES, add);
    for (; r < rows; r++)
        linear_rows<1>(in, count, weights + r * next_out, next_out, next_in, bias ? bias + r : nullptr,
                       out + r * LANES, add);
}

// weights (rows, count), as PyTorch has them
inline void linear(const float* in, int64_t count, const float* weights, const float* bias, float* out, int64_t rows) {
    linear_any(in, count, weights, count, 1, bias, out, rows, false);
}

// the gradient of what went in, from that of what came out
inline void linear_back(
    const float* grad, int64_t count, const float* weights, float* out, int64_t rows, bool add = false) {
    linear_any(grad, count, weights, 1, rows, nullptr, out, rows, add);
}

// Norms: over the channels of a word, or over all words of a sentence at once

// of each lane, the sum over the lanes of its sentence
inline void share_in_sentence(Vec* sums, int64_t words) {
    alignas(64) float lanes[LANES];
    for (int v = 0; v < VECTORS; v++) store(lanes + v * WIDTH, sums[v]);
    for (int64_t first = 0; first < LANES; first += words) {
        float total = 0;
        for (int64_t l = first; l < first + words; l++) total += lanes[l];
        for (int64_t l = first; l < first + words; l++) lanes[l] = total;
    }
    for (int v = 0; v < VECTORS; v++) sums[v] = load(lanes + v * WIDTH);
}

// rows of the weights that each lane's word has, where every word of a sentence has its own
void spread_weights(const float* weights, const Shape& s, float* rows) {
    for (int64_t c = 0; c < s.channels; c++)
        for (int64_t l = 0; l < LANES; l++) rows[c * LANES + l] = weights[l % s.words * s.channels + c];
}

struct Norm {
    Vec rate[VECTORS];  // 1 / standard deviation
};

// normed holds the rows less their mean, over their deviation
Norm normalise(const float* in, const Shape& s, float* normed) {
    const int64_t e = s.channels;
    const float count = (float)s.normed();
    Vec sums[VECTORS], squares[VECTORS];
    for (int v = 0; v < VECTORS; v++) {
        Vec sum = {};
        for (int64_t c = 0; c < e; c++) sum += load(in + c * LANES + v * WIDTH);
        sums[v] = sum;
    }
    if (s.whole) share_in_sentence(sums, s.words);
    for (int v = 0; v < VECTORS; v++) {
        const Vec mean = sums[v] / count;
        Vec square = {};
        for (int64_t c = 0; c < e; c++) {
            const Vec from_mean = load(in + c * LANES + v * WIDTH) - mean;
            square += from_mean * from_mean;
            store(normed + c * LANES + v * WIDTH, from_mean);
        }
        squares[v] = square;
    }
    if (s.whole) share_in_sentence(squares, s.words);
    Norm norm;
    for (int v = 0; v < VECTORS; v++) {
        const Vec variance = squares[v] / count + s.eps;
        Vec rate;
        for (int l = 0; l < WIDTH; l++) rate[l] = 1.0f / std::sqrt(variance[l]);
        for (int64_t c = 0; c < e; c++) store(normed + c * LANES + v * WIDTH, load(normed + c * LANES + v * WIDTH) * rate);
        norm.rate[v] = rate;
    }
    return norm;
}

// scale and shift have a number a channel, or rows of them where norms are of whole sentences
void scale_and_shift(const float* in, const Shape& s, const float* scale, const float* shift, float* out) {
    for (int64_t c = 0; c < s.channels; c++)
        for (int v = 0; v < VECTORS; v++) {
            const int64_t at = c * LANES + v * WIDTH;
            const Vec x = load(in + at);
            store(out + at, s.whole ? x * load(scale + at) + load(shift + at) : x * scale[c] + shift[c]);
        }
}

// a sum over words is one of vectors, whose lanes are added at its end
inline void add_row(const float* row, float* sums) {
    Vec sum = load(sums);
    for (int v = 0; v < VECTORS; v++) sum += load(row + v * WIDTH);
    store(sums, sum);
}

inline double sum_lanes(const float* sums) {
    double total = 0;
    for (int l = 0; l < WIDTH; l++) total += sums[l];
    return total;
}

// grad becomes the gradient of what was normalised, and is added to `to`
void normalise_back(
    float* grad, const float* normed, const Norm& norm, const Shape& s, const float* scale, float* grad_scale,
    float* grad_shift, float* to) {
    const int64_t e = s.channels;
    const float count = (float)s.normed();
    alignas(64) float product[LANES];
    for (int64_t c = 0; c < e; c++) {
        for (int v = 0; v < VECTORS; v++) {
            const int64_t at = c * LANES + v * WIDTH;
            const Vec along = load(grad + at) * load(normed + at);
            store(product + v * WIDTH, along);
            if (s.whole) {
                store(grad_scale + at, load(grad_scale + at) + along);
                store(grad_shift + at, load(grad_shift + at) + load(grad + at));
            }
        }
        if (!s.whole) {
            add_row(product, grad_scale + c * WIDTH);
            add_row(grad + c * LANES, grad_shift + c * WIDTH);
        }
    }
    Vec sums[VECTORS], alongs[VECTORS];
    for (int v = 0; v < VECTORS; v++) {
        Vec sum = {}, along = {};
        for (int64_t c = 0; c < e; c++) {
            const int64_t at = c * LANES + v * WIDTH;
            const Vec g = load(grad + at) * (s.whole ? load(scale + at) : all(scale[c]));
            sum += g;
            along += g * load(normed + at);
        }
        sums[v] = sum, alongs[v] = along;
    }
    if (s.whole) share_in_sentence(sums, s.words), share_in_sentence(alongs, s.words);
    for (int v = 0; v < VECTORS; v++) {
        const Vec sum = sums[v] / count, along = alongs[v] / count;
        for (int64_t c = 0; c < e; c++) {
            const int64_t at = c * LANES + v * WIDTH;
            const Vec g = load(grad + at) * (s.whole ? load(scale + at) : all(scale[c]));
            store(to + at, load(to + at) + norm.rate[v] * (g - sum - load(normed + at) * along));
        }
    }
}

// Attention among the words of a sentence, of one head

// of each lane, the number that the j-th word of its sentence has
inline Vec spread(const float* row, int v, int64_t j, int64_t words, const Ints& first) {
    if (words >= WIDTH) return all(row[v * WIDTH / words * words + j]);
    return __builtin_shuffle(load(row + v * WIDTH), first + (int32_t)j);
}

// the lane of the first word of each lane's sentence, within a vector
inline Ints first_lanes(int64_t words) {
    Ints first = {};
    for (int l = 0; l < WIDTH; l++) first[l] = (int32_t)(words >= WIDTH ? 0 : l / words * words);
    return first;
}

template <int COUNT>
inline void score_keys(
    const float* q, const float* k, int64_t dim, int v, int64_t j, int64_t words, const Ints& first, float scale,
    float* scores) {
    Vec sums[COUNT] = {};
    for (int64_t c = 0; c < dim; c++) {
        const Vec query = load(q + c * LANES + v * WIDTH);
        for (int n = 0; n < COUNT; n++) sums[n] += query * spread(k + c * LANES, v, j + n, words, first);
    }
    for (int n = 0; n < COUNT; n++) store(scores + (j + n) * LANES + v * WIDTH, sums[n] * scale);
}

// products of each lane's word with all words of its sentence: a row for each of these
void score(const float* q, const float* k, int64_t dim, int64_t words, const Ints& first, float scale, float* scores) {
    for (int v = 0; v < VECTORS; v++) {
        int64_t j = 0;
        for (; j + TILE <= words; j += TILE) score_keys<TILE>(q, k, dim, v, j, words, first, scale, scores);
        for (; j < words; j++) score_keys<1>(q, k, dim, v, j, words, first, scale, scores);
    }
}

// a sum in pairs of pairs, which is exact where all words of a sentence are equal; their number is a power of two
struct PairedSum {
    Vec parts[8];

    void add(Vec x, int64_t number) {
        int level = 0;
        for (; number & 1; number >>= 1) x += parts[level++];
        parts[level] = x;
    }

    Vec total(int64_t count) const { return parts[__builtin_ctzll(count)]; }
};

void softmax(float* scores, int64_t words) {
    for (int v = 0; v < VECTORS; v++) {
        float* at = scores + v * WIDTH;
        Vec most = load(at);
        for (int64_t j = 1; j < words; j++) most = larger(most, load(at + j * LANES));
        Vec sum = {};
        for (int64_t j = 0; j < words; j++) {
            const Vec e = exponential(load(at + j * LANES) - most);
            store(at + j * LANES, e);
            sum += e;
        }
        const Vec share = 1.0f / sum;
        for (int64_t j = 0; j < words; j++) store(at + j * LANES, load(at + j * LANES) * share);
    }
}

template <int COUNT>
inline void mix_channels(
    const float* shares, const float* values, int v, int64_t words, const Ints& first, float scale, float* out) {
    Vec sums[COUNT] = {};
    for (int64_t j = 0; j < words; j++) {
        const Vec share = load(shares + j * LANES + v * WIDTH);
        for (int n = 0; n < COUNT; n++) sums[n] += share * spread(values + n * LANES, v, j, words, first);
    }
    for (int n = 0; n < COUNT; n++) store(out + n * LANES + v * WIDTH, sums[n] * scale);
}

// sums of the words of a sentence, by the shares of each lane
void mix(
    const float* shares, const float* values, int64_t dim, int64_t words, const Ints& first, float* out,
    float scale = 1.0f) {
    for (int v = 0; v < VECTORS; v++) {
        int64_t c = 0;
        for (; c + 4 <= dim; c += 4)
            mix_channels<4>(shares, values + c * LANES, v, words, first, scale, out + c * LANES);
        for (; c + 2 <= dim; c += 2)
            mix_channels<2>(shares, values + c * LANES, v, words, first, scale, out + c * LANES);
        for (; c < dim; c++)
            mix_channels<1>(shares, values + c * LANES, v, words, first, scale, out + c * LANES);
    }
}

// shares of keys by queries become shares of queries by keys
void turn(const float* in, int64_t words, float* out) {
    for (int64_t begin = 0; begin < LANES; begin += words) {
        if (words % WIDTH == 0) {
            for (int64_t j = 0; j < words; j += WIDTH)
                for (int64_t i = 0; i < words; i += WIDTH)
                    transpose_square(in + j * LANES + begin + i, LANES, WIDTH, out + i * LANES + begin + j, LANES);
            continue;
        }
        for (int64_t j = 0; j < words; j++)
            for (int64_t i = 0; i < words; i++) out[i * LANES + begin + j] = in[j * LANES + begin + i];
    }
}

// Gradients of weights: sums over the words of a group of one row times another

inline int64_t whole_vectors(int64_t count) { return (count + WIDTH - 1) / WIDTH * WIDTH; }

// rows of LANES numbers to LANES rows of `width` numbers
void words_first(const float* in, int64_t count, int64_t width, float* out) {
    for (int64_t c = 0; c < count; c += WIDTH)
        for (int64_t l = 0; l < LANES; l += WIDTH)
            transpose_square(in + c * LANES + l, LANES, count - c, out + l * width + c, width);
}

template <int ROWS>
inline void add_outer_rows(const float* rows, const float* turned, int64_t width, float* sums) {
    for (int64_t at = 0; at < width; at += WIDTH) {
        Vec sum[ROWS];
        for (int r = 0; r < ROWS; r++) sum[r] = load(sums + r * width + at);
        for (int l = 0; l < LANES; l++) {
            const Vec x = load(turned + l * width + at);
            for (int r = 0; r < ROWS; r++) sum[r] += x * rows[r * LANES + l];
        }
        for (int r = 0; r < ROWS; r++) store(sums + r * width + at, sum[r]);
    }
}

// sums[r][c] += the sum over the words of rows[r] times turned[.][c]
void add_outer(const float* rows, int64_t count, const float* turned, int64_t width, float* sums) {
    int64_t r = 0;
    for (; r + TILE <= count; r += TILE) add_outer_rows<TILE>(rows + r * LANES, turned, width, sums + r * width);
    for (; r < count; r++) add_outer_rows<1>(rows + r * LANES, turned, width, sums + r * width);
}

// Words in memory, where a word's channels lie together

inline Vec read(const float* from) { return load(from); }

inline Vec read(const uint16_t* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof(halves));
    return as_floats(__builtin_convertvector(halves, Ints) << 16);
}

inline void write(float* to, Vec x) { store(to, x); }

inline void write(uint16_t* to, Vec x) {
    const Ints bits = (Ints)x;
    Ints rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;  // to the nearest, ties to even
    rounded = x == x ? rounded : rounded | 0x7FC0;
    const Halves halves = __builtin_convertvector(rounded, Halves);
    std::memcpy(to, &halves, sizeof(halves));
}

// where the columns of a square begin, so that the last one ends with the row: two may overlap
inline int64_t begin_of_columns(int64_t c, int64_t e) { return std::min(c, e - WIDTH); }

template <typename T>
void read_group(const T* words, int64_t count, int64_t e, float* rows) {
    for (int64_t c = 0; c < e; c += WIDTH)
        for (int64_t l = 0; l < LANES; l += WIDTH) {
            T narrow[WIDTH] = {};
            const int64_t columns = std::min<int64_t>(e, WIDTH), from = e < WIDTH ? 0 : begin_of_columns(c, e);
            Vec square[WIDTH];
            for (int64_t i = 0; i < WIDTH; i++) {
                square[i] = Vec{};
                if (l + i >= count) continue;
                const T* at = words + (l + i) * e + from;
                if (e < WIDTH) std::memcpy(narrow, at, columns * sizeof(T)), at = narrow;
                square[i] = read(at);
            }
            transpose(square);
            for (int64_t i = 0; i < columns; i++) store(rows + (from + i) * LANES + l, square[i]);
        }
}

template <typename T>
void write_group(T* words, int64_t count, int64_t e, const float* rows) {
    for (int64_t c = 0; c < e; c += WIDTH)
        for (int64_t l = 0; l < LANES; l += WIDTH) {
            T narrow[WIDTH];
            const int64_t columns = std::min<int64_t>(e, WIDTH), from = e < WIDTH ? 0 : begin_of_columns(c, e);
            Vec square[WIDTH];
            for (int64_t i = 0; i < WIDTH; i++) square[i] = i < columns ? load(rows + (from + i) * LANES + l) : Vec{};
            transpose(square);
            for (int64_t i = 0; i < WIDTH && l + i < count; i++) {
                T* at = words + (l + i) * e + from;
                if (e >= WIDTH) {
                    write(at, square[i]);
                    continue;
                }
                write(narrow, square[i]);
                std::memcpy(at, narrow, columns * sizeof(T));
            }
        }
}

// A group's way through the block

struct Arrays {
    std::vector<float> memory;
    float *x, *normed1, *in1, *qkv, *scores, *mixed, *after, *normed2, *in2, *wide, *active, *out;
    float *grad, *grad_wide, *grad_qkv, *grad_in, *grad_mixed, *turned, *other, *keep;
    std::vector<float> spread;  // weights of norms of whole sentences
    const float *norm1_scale, *norm1_shift, *norm2_scale, *norm2_shift;
    Ints first;

    Arrays(const Shape& s, const Weights& w) {
        const int64_t e = s.channels * LANES, h = s.hidden * LANES, scores_all = s.heads * s.words * LANES;
        const int64_t most = std::max(whole_vectors(s.hidden), whole_vectors(3 * s.channels)) * LANES;
        memory.assign(12 * e + 3 * e + 3 * e + 3 * h + scores_all + 4 * s.words * LANES + most + 32 + 2 * LANES, 0.0f);
        float* at = (float*)(((uintptr_t)memory.data() + 63) / 64 * 64);
        auto take = [&at](int64_t count) {
            float* here = at;
            at += count;
            return here;
        };
        x = take(e), normed1 = take(e), in1 = take(e), qkv = take(3 * e), scores = take(scores_all), mixed = take(e);
        after = take(e), normed2 = take(e), in2 = take(e), wide = take(h), active = take(h), out = take(e);
        grad = take(e), grad_wide = take(h), grad_qkv = take(3 * e), grad_in = take(e), grad_mixed = take(e);
        other = take(s.words * LANES), keep = take(2 * LANES), turned = take(most);
        first = first_lanes(s.words);
        norm1_scale = w.norm1_scale, norm1_shift = w.norm1_shift;
        norm2_scale = w.norm2_scale, norm2_shift = w.norm2_shift;
        if (!s.whole) return;
        spread.resize(4 * e + 16);
        float* rows = (float*)(((uintptr_t)spread.data() + 63) / 64 * 64);
        for (const float** weights : {&norm1_scale, &norm1_shift, &norm2_scale, &norm2_shift}) {
            spread_weights(*weights, s, rows);
            *weights = rows;
            rows += e;
        }
    }
};

// how much of both residuals is kept of each word: the draws of its sentence, of which the first residual's come first
void read_keep(const float* keep, int64_t begin, int64_t sentences, int64_t words, float* lanes) {
    for (int64_t l = 0; l < LANES; l++) {
        const int64_t sentence = begin + l / words;
        const bool is_drawn = keep && sentence < sentences;
        lanes[l] = is_drawn ? keep[sentence] : 1.0f;
        lanes[LANES + l] = is_drawn ? keep[sentences + sentence] : 1.0f;
    }
}

inline void add_kept(const float* to, const float* part, const float* keep, int64_t e, float* out) {
    for (int64_t c = 0; c < e; c++)
        for (int v = 0; v < VECTORS; v++) {
            const int64_t at = c * LANES + v * WIDTH;
            store(out + at, load(to + at) + load(keep + v * WIDTH) * load(part + at));
        }
}

struct Norms {
    Norm first, second;
};

// all of the block until the words after the hidden layer; `scores` keeps the shares of all heads
Norms go_forward(Arrays& a, const Shape& s, const Weights& w, bool with_slope) {
    const int64_t e = s.channels, dim = e / s.heads;
    const float scale = 1.0f / std::sqrt((float)dim);
    Norms norms;
    norms.first = normalise(a.x, s, a.normed1);
    scale_and_shift(a.normed1, s, a.norm1_scale, a.norm1_shift, a.in1);
    linear(a.in1, e, w.qkv, nullptr, a.qkv, 3 * e);
    for (int64_t h = 0; h < s.heads; h++) {
        const int64_t at = h * dim * LANES;
        float* scores = a.scores + h * s.words * LANES;
        score(a.qkv + at, a.qkv + e * LANES + at, dim, s.words, a.first, scale, scores);
        softmax(scores, s.words);
        mix(scores, a.qkv + 2 * e * LANES + at, dim, s.words, a.first, a.mixed + at);
    }
    linear(a.mixed, e, w.proj, w.proj_bias, a.out, e);
    add_kept(a.x, a.out, a.keep, e, a.after);
    norms.second = normalise(a.after, s, a.normed2);
    scale_and_shift(a.normed2, s, a.norm2_scale, a.norm2_shift, a.in2);
    linear(a.in2, e, w.fc1, w.fc1_bias, a.wide, s.hidden);
    for (int64_t at = 0; at < s.hidden * LANES; at += WIDTH) {
        const Vec x = load(a.wide + at);
        const Gelu gelu = s.tanh ? gelu_tanh(x, with_slope) : gelu_erf(x, with_slope);
        store(a.active + at, gelu.value);
        if (with_slope) store(a.wide + at, gelu.slope);
    }
    return norms;
}

template <typename T>
void forward(
    const T* words, const float* keep, const float* weights, const Shape& s, int64_t sentences,
    int64_t begin, int64_t end, T* out) {
    const Weights w(weights, s);
    Arrays a(s, w);
    const int64_t together = LANES / s.words, e = s.channels, size = s.words * e;
    for (int64_t at = begin; at < end; at += together) {
        const int64_t count = std::min(together, end - at) * s.words;
        read_group(words + at * size, count, e, a.x);
        read_keep(keep, at, sentences, s.words, a.keep);
        go_forward(a, s, w, false);
        linear(a.active, s.hidden, w.fc2, w.fc2_bias, a.out, e);
        add_kept(a.after, a.out, a.keep + LANES, e, a.out);
        write_group(out + at * size, count, e, a.out);
    }
}

// Sums of the gradients of the weights; those with `turned` in their name have the larger side in their rows, and those
// of norms and biases have a vector for each number, and those of norms of whole sentences a row of lanes a channel
struct Sums {
    std::vector<float> memory;
    float *norm1_scale, *norm1_shift, *qkv_turned, *proj, *proj_bias, *norm2_scale, *norm2_shift, *fc1_turned, *fc1_bias,
        *fc2, *fc2_bias;

    explicit Sums(const Shape& s) {
        const int64_t e = s.channels, h = s.hidden;
        const int64_t wide = whole_vectors(e), wider = whole_vectors(3 * e), widest = whole_vectors(h);
        const int64_t normed = e * (s.whole ? LANES : WIDTH);
        memory.assign(e * wider + e * wide + 2 * e * widest + 4 * normed + (2 * e + h) * WIDTH, 0.0f);
        float* at = memory.data();
        auto take = [&at](int64_t count) {
            float* here = at;
            at += count;
            return here;
        };
        qkv_turned = take(e * wider), proj = take(e * wide), fc1_turned = take(e * widest), fc2 = take(e * widest);
        norm1_scale = take(normed), norm1_shift = take(normed), proj_bias = take(e * WIDTH);
        norm2_scale = take(normed), norm2_shift = take(normed), fc1_bias = take(h * WIDTH);
        fc2_bias = take(e * WIDTH);
    }

    // add them, in the order of `Weights`: in double precision, since what chunks add up to may be much less than each
    void add_to(double* to, const Shape& s) const {
        const int64_t e = s.channels, h = s.hidden;
        auto vectors = [&to](const float* from, int64_t count) {
            for (int64_t i = 0; i < count; i++) *to++ += sum_lanes(from + i * WIDTH);
        };
        auto rows = [&to](const float* from, int64_t count, int64_t length) {
            for (int64_t r = 0; r < count; r++)
                for (int64_t c = 0; c < length; c++) *to++ += from[r * whole_vectors(length) + c];
        };
        auto turned = [&to](const float* from, int64_t count, int64_t length) {
            for (int64_t c = 0; c < length; c++)
                for (int64_t r = 0; r < count; r++) *to++ += from[r * whole_vectors(length) + c];
        };
        auto norms = [&](const float* from) {
            if (!s.whole) return vectors(from, e);
            for (int64_t word = 0; word < s.words; word++)
                for (int64_t c = 0; c < e; c++, to++)
                    for (int64_t l = word; l < LANES; l += s.words) *to += from[c * LANES + l];
        };
        norms(norm1_scale), norms(norm1_shift), turned(qkv_turned, e, 3 * e), rows(proj, e, e);
        vectors(proj_bias, e), norms(norm2_scale), norms(norm2_shift), turned(fc1_turned, e, h);
        vectors(fc1_bias, h), rows(fc2, e, h), vectors(fc2_bias, e);
    }
};

inline void add_lanes(const float* rows, int64_t count, float* sums) {
    for (int64_t c = 0; c < count; c++) add_row(rows + c * LANES, sums + c * WIDTH);
}

inline void keep_of(const float* rows, const float* keep, int64_t e, float* out) {
    for (int64_t c = 0; c < e; c++)
        for (int v = 0; v < VECTORS; v++) {
            const int64_t at = c * LANES + v * WIDTH;
            store(out + at, load(keep + v * WIDTH) * load(rows + at));
        }
}

// the gradients of queries, keys and values, from that of what was mixed
void attention_back(Arrays& a, const Shape& s) {
    const int64_t e = s.channels, dim = e / s.heads;
    const float scale = 1.0f / std::sqrt((float)dim);
    for (int64_t h = 0; h < s.heads; h++) {
        const int64_t at = h * dim * LANES;
        const float *q = a.qkv + at, *k = q + e * LANES, *value = k + e * LANES, *grad = a.grad_mixed + at;
        float *grad_q = a.grad_qkv + at, *grad_k = grad_q + e * LANES, *grad_value = grad_k + e * LANES;
        float* shares = a.scores + h * s.words * LANES;
        turn(shares, s.words, a.turned);
        mix(a.turned, grad, dim, s.words, a.first, grad_value);
        score(grad, value, dim, s.words, a.first, 1.0f, a.other);
        for (int v = 0; v < VECTORS; v++) {
            PairedSum sums;
            for (int64_t j = 0; j < s.words; j++) {
                const int64_t here = j * LANES + v * WIDTH;
                sums.add(load(shares + here) * load(a.other + here), j);
            }
            const Vec sum = sums.total(s.words);
            for (int64_t j = 0; j < s.words; j++) {
                const int64_t here = j * LANES + v * WIDTH;
                store(a.other + here, load(shares + here) * (load(a.other + here) - sum));
            }
        }
        mix(a.other, k, dim, s.words, a.first, grad_q, scale);
        turn(a.other, s.words, a.turned);
        mix(a.turned, q, dim, s.words, a.first, grad_k, scale);
    }
}

template <typename T>
void backward(
    const T* grad, const T* words, const float* keep, const float* weights, const Shape& s,
    int64_t sentences, int64_t begin, int64_t end, T* out, Sums& sums) {
    const Weights w(weights, s);
    Arrays a(s, w);
    const int64_t together = LANES / s.words, e = s.channels, size = s.words * e;
    const int64_t wide = whole_vectors(e), wider = whole_vectors(3 * e), widest = whole_vectors(s.hidden);
    for (int64_t at = begin; at < end; at += together) {
        const int64_t count = std::min(together, end - at) * s.words;
        read_group(words + at * size, count, e, a.x);
        read_group(grad + at * size, count, e, a.out);
        read_keep(keep, at, sentences, s.words, a.keep);
        std::swap(a.out, a.grad);  // which going forward leaves alone
        const Norms norms = go_forward(a, s, w, true);

        // the MLP
        keep_of(a.grad, a.keep + LANES, e, a.out);
        words_first(a.active, s.hidden, widest, a.turned);
        add_outer(a.out, e, a.turned, widest, sums.fc2);
        add_lanes(a.out, e, sums.fc2_bias);
        linear_back(a.out, e, w.fc2, a.grad_wide, s.hidden);
        for (int64_t i = 0; i < s.hidden * LANES; i += WIDTH)
            store(a.grad_wide + i, load(a.grad_wide + i) * load(a.wide + i));
        words_first(a.grad_wide, s.hidden, widest, a.turned);
        add_outer(a.in2, e, a.turned, widest, sums.fc1_turned);
        add_lanes(a.grad_wide, s.hidden, sums.fc1_bias);
        linear_back(a.grad_wide, s.hidden, w.fc1, a.grad_in, e);
        normalise_back(a.grad_in, a.normed2, norms.second, s, a.norm2_scale, sums.norm2_scale, sums.norm2_shift, a.grad);

        // attention
        keep_of(a.grad, a.keep, e, a.out);
        words_first(a.mixed, e, wide, a.turned);
        add_outer(a.out, e, a.turned, wide, sums.proj);
        add_lanes(a.out, e, sums.proj_bias);
        linear_back(a.out, e, w.proj, a.grad_mixed, e);
        attention_back(a, s);
        words_first(a.grad_qkv, 3 * e, wider, a.turned);
        add_outer(a.in1, e, a.turned, wider, sums.qkv_turned);
        linear_back(a.grad_qkv, 3 * e, w.qkv, a.grad_in, e);
        normalise_back(a.grad_in, a.normed1, norms.first, s, a.norm1_scale, sums.norm1_scale, sums.norm1_shift, a.grad);
        write_group(out + at * size, count, e, a.grad);
    }
}

// where a chunk begins: at a whole group
inline int64_t begin_of(int64_t chunk, int64_t sentences, int64_t together) {
    const int64_t groups = (sentences + together - 1) / together;
    return std::min(sentences, groups * chunk / CHUNKS * together);
}

template <typename T>
void forward_all(
    const T* words, const float* keep, const float* weights, const Shape& s, int64_t sentences,
    int threads, T* out) {
    const int64_t together = LANES / s.words;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        const int64_t begin = begin_of(chunk, sentences, together), end = begin_of(chunk + 1, sentences, together);
        if (begin < end) forward(words, keep, weights, s, sentences, begin, end, out);
    }
}

template <typename T>
void backward_all(
    const T* grad, const T* words, const float* keep, const float* weights, const Shape& s,
    int64_t sentences, int threads, T* out, float* grad_weights) {
    const int64_t together = LANES / s.words;
    std::vector<Sums> sums;
    for (int chunk = 0; chunk < CHUNKS; chunk++) sums.emplace_back(s);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        const int64_t begin = begin_of(chunk, sentences, together), end = begin_of(chunk + 1, sentences, together);
        if (begin < end) backward(grad, words, keep, weights, s, sentences, begin, end, out, sums[chunk]);
    }
    std::vector<double> totals(Weights::count(s), 0.0);
    for (const Sums& part : sums) part.add_to(totals.data(), s);  // in one order, whatever the threads
    std::copy(totals.begin(), totals.end(), grad_weights);
}

}  // namespace

extern "C" {

// words that a sentence may have: those that fill a group
int32_t vitrail_lanes() { return LANES; }

int64_t vitrail_count_weights(const Shape* shape) { return Weights::count(*shape); }

// words (sentences, words, channels) in float32, or bfloat16 as `is_half`; keep (2, sentences), or null where all is kept
void vitrail_word_block(
    const void* words, const float* keep, const float* weights, const Shape* shape,
    int64_t sentences, int32_t is_half, int32_t threads, void* out) {
    if (is_half)
        forward_all((const uint16_t*)words, keep, weights, *shape, sentences, threads, (uint16_t*)out);
    else
        forward_all((const float*)words, keep, weights, *shape, sentences, threads, (float*)out);
}

void vitrail_word_block_backward(
    const void* grad, const void* words, const float* keep, const float* weights,
    const Shape* shape, int64_t sentences, int32_t is_half, int32_t threads, void* out, float* grad_weights) {
    if (is_half)
        backward_all(
            (const uint16_t*)grad, (const uint16_t*)words, keep, weights, *shape, sentences, threads,
            (uint16_t*)out, grad_weights);
    else
        backward_all(
            (const float*)grad, (const float*)words, keep, weights, *shape, sentences, threads, (float*)out,
            grad_weights);
}
}
