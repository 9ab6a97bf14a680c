/* What a ConvNet computes in float32 on a CPU, channels last: arrays are (image, row, column, channel), dense.
 *
 * Numbers of filters are multiples of 8, sides of images multiples of 4 where a convolution goes through
 * tiles, of 2 where pixels are pooled. What a number is summed of is summed by one thread, so none of these functions
 * depends on how many there are.
 *
 * Tiles: Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, F(4x4, 3x3).
 */

#include <stdlib.h>
#include <string.h>

#define STRIP 32 /* rows of an image that go together where not all do */

/* Which source this was compiled from: whoever calls compares it with the one at hand. */
long medistill_source(void) { return SOURCE; }

#define AT(p) (*(vec *)(p))
#define GET(p) (*(const vec *)(p))
#define INLINE static inline __attribute__((always_inline))
#define JOINED(name, lanes) name##_##lanes
#define EXPANDED(name, lanes) JOINED(name, lanes)
#define LANED(name) EXPANDED(name, LANES)

/* Four, two or one vectors of channels go over an image together: what lies side by side is read at once. */
#define MOST 4
#define EACH(v) for (int v = 0; v < together; v++)
#define TOGETHER(name, ...) \
    (together == 4 ? name(4, __VA_ARGS__) : together == 2 ? name(2, __VA_ARGS__) : name(1, __VA_ARGS__))
static int together_of(long c, int lanes) { return c % (4 * lanes) == 0 ? 4 : c % (2 * lanes) == 0 ? 2 : 1; }

/* What a 3x3 kernel sees at each pixel of a row of x (height, width, c): seen (width, 9 * c), zeros beyond the border. */
static void seen_from(const float *x, float *seen, long row, long height, long width, long c) {
    memset(seen, 0, 9 * c * width * sizeof(float));
    for (int i = 0; i < 3; i++) {
        long h = row + i - 1;
        if (h < 0 || h >= height) continue;
        for (long w = 0; w < width; w++) {
            long left = w > 0 ? 0 : c, right = w < width - 1 ? 3 * c : 2 * c;
            memcpy(seen + (w * 3 + i) * 3 * c + left, x + (h * width + w - 1) * c + left,
                   (right - left) * sizeof(float));
        }
    }
}

#define LANES 8
#include "kernels.h"
#undef LANES
#ifdef __AVX512F__ /* a whole line of the cache at once */
#define LANES 16
#include "kernels.h"
#undef LANES
#define BY_LANES(c, name, ...) ((c) % 16 ? name##_8(__VA_ARGS__) : name##_16(__VA_ARGS__))
#else
#define BY_LANES(c, name, ...) name##_8(__VA_ARGS__)
#endif
#define LANES 8
#define vec vec_8

/* MKL's products of several pairs of matrices, cblas_sgemm_batch; torch has it, and its bmm calls it. */
typedef void products_of(int order, const int *turned, const int *other_turned, const int *rows, const int *columns,
                         const int *inner, const float *factor, const float **a, const int *a_row, const float **b,
                         const int *b_row, const float *kept, float **c, const int *c_row, int groups,
                         const int *in_group);

/* c = kept * c + a b at each of the 36 points: a (rows, inner), its transpose lying there if turned, b (inner, columns),
 * c (rows, columns), each point's so many numbers after that of the point before. */
static void multiply(products_of *products, int turned, long rows, long columns, long inner, const float *a, long a_step,
                     const float *b, long b_step, float kept, float *c, long c_step) {
    const float *as[36], *bs[36], one = 1.0f;
    float *cs[36];
    int m = rows, n = columns, k = inner, a_row = turned ? rows : inner, all = 36, flip = turned ? 112 : 111, plain = 111;
    for (int i = 0; i < 36; i++) as[i] = a + i * a_step, bs[i] = b + i * b_step, cs[i] = c + i * c_step;
    products(101, &flip, &plain, &m, &n, &k, &one, as, &a_row, bs, &n, &kept, cs, &n, 1, &all);
}

/* From the numbers of a point to those of the next: a line of the cache more than there are, lest 36 streams, each a
 * power of two further, meet in the same places of the cache. */
#define SPACE 16

/* 3x3 convolution of x (n, height, width, c), with a border of zeros, by a kernel at the points (36, c, filters), with a
 * number added for each filter: y (n, height, width, filters); so many images at once. What is written to room is needed
 * no longer: 36 * (n * height/4 * width/4 * (c + filters) + 2 * SPACE) numbers for those images. */
void convolution(const float *x, const float *kernel, const float *bias, float *y, float *room, products_of *products,
                 long n, long height, long width, long c, long filters, long at_once, int threads) {
    long of_image = height / 4 * (width / 4), most = (at_once < n ? at_once : n) * of_image;
    long given = most * c + SPACE, found = most * filters + SPACE;
    float *sums = room + 36 * given;
    for (long first = 0; first < n; first += at_once) {
        long images = first + at_once < n ? at_once : n - first;
        BY_LANES(c, tiles_to_points, x + first * height * width * c, room, given, images, height, width, c, threads);
        multiply(products, 0, images * of_image, filters, c, room, given, kernel, c * filters, 0.0f, sums, found);
        BY_LANES(filters, points_to_tiles, sums, bias, y + first * height * width * filters, found, images, height, width,
                 filters, threads);
    }
}

/* Gradient of that convolution by its kernel, at the points, added to total (36, c, filters); room as there. */
void convolution_kernel(const float *x, const float *gradient, float *total, float *room, products_of *products, long n,
                        long height, long width, long c, long filters, long at_once, int threads) {
    long of_image = height / 4 * (width / 4), most = (at_once < n ? at_once : n) * of_image;
    long given = most * c + SPACE, found = most * filters + SPACE;
    float *back = room + 36 * given;
    for (long first = 0; first < n; first += at_once) {
        long images = first + at_once < n ? at_once : n - first;
        BY_LANES(c, tiles_to_points, x + first * height * width * c, room, given, images, height, width, c, threads);
        BY_LANES(filters, tiles_back_to_points, gradient + first * height * width * filters, back, found, images, height,
                 width, filters, threads);
        multiply(products, 1, c, filters, images * of_image, room, given, back, found, 1.0f, total, c * filters);
    }
}

INLINE void few_columns(const int parts, const float *gradient, const float *weight, float *columns, long filters) {
    vec sum[2][5];
    for (int r = 0; r < parts; r++) sum[0][r] = sum[1][r] = (vec){0};
    for (long k = 0; k < filters; k++)
        for (int r = 0; r < parts; r++) {
            vec w = GET(weight + (k * parts + r) * LANES);
            sum[0][r] += gradient[k] * w;
            sum[1][r] += gradient[filters + k] * w;
        }
    for (int r = 0; r < parts; r++) {
        AT(columns + r * LANES) = sum[0][r];
        AT(columns + (parts + r) * LANES) = sum[1][r];
    }
}

/* Gradient of a 3x3 convolution by its images, of up to four channels and even width: gradient (n, height, width,
 * filters), weight (filters, 9 * c and zeros up to a multiple of 8), x (n, height, width, c). Returns 0, or 1 where there
 * is no memory. */
int first_images(const float *gradient, const float *weight, float *x, long n, long height, long width, long c,
                 long filters, int threads) {
    long length = (width + 2) * c, parts = (9 * c + LANES - 1) / LANES, strips = (height + STRIP - 1) / STRIP;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        float *padded = malloc((STRIP + 4) * length * sizeof(float));
        float *columns = malloc(width * parts * LANES * sizeof(float));
        failed = padded == NULL || columns == NULL;
#pragma omp for schedule(static)
        for (long job = 0; job < n * strips; job++) {
            if (padded == NULL || columns == NULL) continue;
            long image = job / strips, first = job % strips * STRIP;
            long last = first + STRIP < height ? first + STRIP : height;
            /* The rows of gradients that reach the strip; padded begins two rows above it. */
            long from_row = first > 0 ? first - 1 : 0, to_row = last < height ? last + 1 : height;
            memset(padded, 0, (STRIP + 4) * length * sizeof(float));
            for (long row = from_row; row < to_row; row++) {
                const float *from = gradient + (image * height + row) * width * filters;
                for (long w = 0; w < width; w += 2) {
                    float *to = columns + w * parts * LANES;
                    switch (parts) {
                    case 2: few_columns(2, from + w * filters, weight, to, filters); break;
                    case 3: few_columns(3, from + w * filters, weight, to, filters); break;
                    case 4: few_columns(4, from + w * filters, weight, to, filters); break;
                    default: few_columns(5, from + w * filters, weight, to, filters);
                    }
                }
                for (int i = 0; i < 3; i++) {
                    float *to = padded + (row - first + i + 1) * length;
                    for (long w = 0; w < width; w++)
                        for (long j = 0; j < 3 * c; j++)
                            to[w * c + j] += columns[w * parts * LANES + i * 3 * c + j];
                }
            }
            for (long row = first; row < last; row++)
                memcpy(x + (image * height + row) * width * c, padded + (row - first + 2) * length + c,
                       width * c * sizeof(float));
        }
        free(padded);
        free(columns);
    }
    return failed;
}

/* Of channels that go together in vectors: kernels.h says of each what it does. */
int first_weight(const float *x, const float *gradient, float *sums, long n, long height, long width, long c,
                 long filters, int threads) {
    return BY_LANES(filters, first_weight, x, gradient, sums, n, height, width, c, filters, threads);
}

void norm_relu_pool(const float *x, const float *scale, const float *shift, float *y, float *mean, float *root,
                    float epsilon, long n, long height, long width, long c, int threads) {
    BY_LANES(c, norm_relu_pool, x, scale, shift, y, mean, root, epsilon, n, height, width, c, threads);
}

void norm_relu_pool_gradient(const float *x, const float *scale, const float *shift, const float *mean,
                             const float *root, const float *coming, float *found, float *total, float *along,
                             long n, long height, long width, long c, int threads) {
    BY_LANES(c, norm_relu_pool_gradient, x, scale, shift, mean, root, coming, found, total, along, n, height, width, c,
             threads);
}

void norm_relu_pool_second(const float *x, const float *scale, const float *shift, const float *mean, const float *root,
                           const float *coming, const float *of_found, const float *of_scale, const float *of_shift,
                           float *by_x, float *by_scale, float *by_coming, long n, long height, long width, long c,
                           int threads) {
    BY_LANES(c, norm_relu_pool_second, x, scale, shift, mean, root, coming, of_found, of_scale, of_shift, by_x, by_scale,
             by_coming, n, height, width, c, threads);
}
