/* What is in kernels.c for channels that go together in vectors of LANES numbers; included for each such number.
 *
 * Channels do not mix, so each number is the same whatever LANES is.
 */

#define vec LANED(vec)
#define mask LANED(mask)
#define positive LANED(positive)
#define to_points LANED(to_points)
#define from_points LANED(from_points)
#define back_to_points LANED(back_to_points)
#define tiles_to_points LANED(tiles_to_points)
#define points_to_tiles LANED(points_to_tiles)
#define tiles_back_to_points LANED(tiles_back_to_points)
#define first_weight LANED(first_weight)
#define norm_relu_pool LANED(norm_relu_pool)
#define norm_relu_pool_gradient LANED(norm_relu_pool_gradient)
#define norm_relu_pool_second LANED(norm_relu_pool_second)

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int mask __attribute__((vector_size(4 * LANES)));

INLINE vec positive(vec z) { /* a NaN stays one */
    mask below = z < 0.0f;
    return (vec)((mask)z & ~below);
}

/* Six values in a row of a tile to the six points at which products are taken, and the transposes of the others. */
INLINE void to_points(const vec d[6], vec v[6]) {
    vec even = d[4] - 4.0f * d[2], odd = d[3] - 4.0f * d[1], near = d[4] - d[2], far = 2.0f * (d[3] - d[1]);
    v[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    v[1] = even + odd;
    v[2] = even - odd;
    v[3] = near + far;
    v[4] = near - far;
    v[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

INLINE void from_points(const vec m[6], vec y[4]) {
    vec p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
    y[0] = m[0] + p + r;
    y[1] = q + 2.0f * s;
    y[2] = p + 4.0f * r;
    y[3] = q + 8.0f * s + m[5];
}

INLINE void back_to_points(const vec y[4], vec m[6]) {
    vec p = y[0] + y[2], q = y[1] + y[3], r = y[0] + 4.0f * y[2], s = 2.0f * y[1] + 8.0f * y[3];
    m[0] = y[0];
    m[1] = p + q;
    m[2] = p - q;
    m[3] = r + s;
    m[4] = r - s;
    m[5] = y[3];
}

/* x (n, height, width, c) to points (36, n * height/4 * width/4, c), those of the next point step numbers further;
 * beyond the border there are zeros. */
static void tiles_to_points(const float *x, float *points, long step, long n, long height, long width, long c,
                            int threads) {
    long rows = height / 4, columns = width / 4, tiles = rows * columns;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long job = 0; job < n * rows; job++) {
        long image = job / rows, row = job % rows;
        const float *from = x + image * height * width * c;
        for (long column = 0; column < columns; column++) {
            float *to = points + (image * tiles + row * columns + column) * c;
            for (long k = 0; k < c; k += LANES) {
                vec half[6][6], out[6];
                for (int i = 0; i < 6; i++) {
                    long h = 4 * row + i - 1;
                    vec line[6];
                    for (int j = 0; j < 6; j++) {
                        long w = 4 * column + j - 1;
                        int inside = h >= 0 && h < height && w >= 0 && w < width;
                        line[j] = inside ? GET(from + (h * width + w) * c + k) : (vec){0};
                    }
                    to_points(line, half[i]);
                }
                for (int j = 0; j < 6; j++) {
                    vec line[6] = {half[0][j], half[1][j], half[2][j], half[3][j], half[4][j], half[5][j]};
                    to_points(line, out);
                    for (int i = 0; i < 6; i++) AT(to + (6 * i + j) * step + k) = out[i];
                }
            }
        }
    }
}

/* points (36, n * height/4 * width/4, c) to y (n, height, width, c), with c numbers added to every pixel. */
static void points_to_tiles(const float *points, const float *bias, float *y, long step, long n, long height,
                            long width, long c, int threads) {
    long rows = height / 4, columns = width / 4, tiles = rows * columns;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long job = 0; job < n * rows; job++) {
        long image = job / rows, row = job % rows;
        float *to = y + image * height * width * c;
        for (long column = 0; column < columns; column++) {
            const float *from = points + (image * tiles + row * columns + column) * c;
            for (long k = 0; k < c; k += LANES) {
                vec half[4][6], more = GET(bias + k);
                for (int j = 0; j < 6; j++) {
                    vec line[6], out[4];
                    for (int i = 0; i < 6; i++) line[i] = GET(from + (6 * i + j) * step + k);
                    from_points(line, out);
                    for (int i = 0; i < 4; i++) half[i][j] = out[i];
                }
                for (int i = 0; i < 4; i++) {
                    vec out[4];
                    from_points(half[i], out);
                    for (int j = 0; j < 4; j++)
                        AT(to + ((4 * row + i) * width + 4 * column + j) * c + k) = out[j] + more;
                }
            }
        }
    }
}

/* The transpose of points_to_tiles. */
static void tiles_back_to_points(const float *y, float *points, long step, long n, long height, long width, long c,
                                 int threads) {
    long rows = height / 4, columns = width / 4, tiles = rows * columns;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long job = 0; job < n * rows; job++) {
        long image = job / rows, row = job % rows;
        const float *from = y + image * height * width * c;
        for (long column = 0; column < columns; column++) {
            float *to = points + (image * tiles + row * columns + column) * c;
            for (long k = 0; k < c; k += LANES) {
                vec half[4][6], out[6];
                for (int i = 0; i < 4; i++) {
                    vec line[4];
                    for (int j = 0; j < 4; j++)
                        line[j] = GET(from + ((4 * row + i) * width + 4 * column + j) * c + k);
                    back_to_points(line, half[i]);
                }
                for (int j = 0; j < 6; j++) {
                    vec line[4] = {half[0][j], half[1][j], half[2][j], half[3][j]};
                    back_to_points(line, out);
                    for (int i = 0; i < 6; i++) AT(to + (6 * i + j) * step + k) = out[i];
                }
            }
        }
    }
}

/* Gradient of a 3x3 convolution by weight and bias, of each strip of each image x (n, height, width, c) of few channels:
 * sums (n * strips, 9 * c + 1, filters). Returns as first_images does. */
static int first_weight(const float *x, const float *gradient, float *sums, long n, long height, long width, long c,
                 long filters, int threads) {
    long taps = 9 * c, strips = (height + STRIP - 1) / STRIP, size = (taps + 1) * filters;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        float *seen = malloc(width * taps * sizeof(float));
        failed = seen == NULL;
#pragma omp for schedule(static)
        for (long job = 0; job < n * strips; job++) {
            if (seen == NULL) continue;
            long image = job / strips, first = job % strips * STRIP;
            long last = first + STRIP < height ? first + STRIP : height;
            float *own = sums + job * size;
            memset(own, 0, size * sizeof(float));
            for (long row = first; row < last; row++) {
                seen_from(x + image * height * width * c, seen, row, height, width, c);
                const float *from = gradient + (image * height + row) * width * filters;
                for (long k = 0; k < filters; k += LANES) {
                    for (long t = 0; t < taps; t += 9) {
                        vec sum[9];
                        for (int i = 0; i < 9; i++) sum[i] = (vec){0};
                        for (long w = 0; w < width; w++) {
                            vec g = GET(from + w * filters + k);
                            for (int i = 0; i < 9; i++) sum[i] += seen[w * taps + t + i] * g;
                        }
                        for (int i = 0; i < 9; i++) AT(own + (t + i) * filters + k) += sum[i];
                    }
                    vec sum = {0};
                    for (long w = 0; w < width; w++) sum += GET(from + w * filters + k);
                    AT(own + taps * filters + k) += sum;
                }
            }
        }
        free(seen);
    }
    return failed;
}

/* Normalises each channel of each image x (n, height, width, c), scales, shifts, cuts what is negative and takes means
 * of 2x2 pixels: y (n, height/2, width/2, c). Keeps mean and 1/sqrt(variance + epsilon), each (n, c). */
static void norm_relu_pool(const float *x, const float *scale, const float *shift, float *y, float *mean, float *root,
                    float epsilon, long n, long height, long width, long c, int threads) {
    long pixels = height * width;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (long image = 0; image < n; image++) {
        for (long k = 0; k < c; k += LANES) {
            const float *from = x + image * pixels * c;
            float *to = y + image * pixels / 4 * c;
            vec total = {0}, spread = {0};
            for (long h = 0; h < height; h++) { /* by rows, which bounds the rounding */
                vec sum = {0}, other = {0};
                for (long w = 0; w < width; w += 2) {
                    sum += GET(from + (h * width + w) * c + k);
                    other += GET(from + (h * width + w + 1) * c + k);
                }
                total += sum + other;
            }
            vec middle = total / (float)pixels;
            for (long h = 0; h < height; h++) {
                vec sum = {0}, other = {0};
                for (long w = 0; w < width; w += 2) {
                    vec a = GET(from + (h * width + w) * c + k) - middle;
                    vec b = GET(from + (h * width + w + 1) * c + k) - middle;
                    sum += a * a;
                    other += b * b;
                }
                spread += sum + other;
            }
            vec inverse, by;
            for (int i = 0; i < LANES; i++)
                inverse[i] = 1.0f / __builtin_sqrtf(spread[i] / (float)pixels + epsilon);
            by = inverse * GET(scale + k);
            vec plus = GET(shift + k) - middle * by;
            AT(mean + image * c + k) = middle;
            AT(root + image * c + k) = inverse;
            for (long h = 0; h < height; h += 2)
                for (long w = 0; w < width; w += 2) {
                    const float *a = from + (h * width + w) * c + k, *b = a + width * c;
                    vec sum = positive(GET(a) * by + plus) + positive(GET(a + c) * by + plus) +
                              positive(GET(b) * by + plus) + positive(GET(b + c) * by + plus);
                    AT(to + (h / 2 * (width / 2) + w / 2) * c + k) = 0.25f * sum;
                }
        }
    }
}

/* Gradient of norm_relu_pool: coming (n, height/2, width/2, c), found (n, height, width, c); total and along (n, c) are
 * each image's gradients by shift and scale. */
static void norm_relu_pool_gradient(const float *x, const float *scale, const float *shift, const float *mean,
                             const float *root, const float *coming, float *found, float *total, float *along,
                             long n, long height, long width, long c, int threads) {
    long pixels = height * width;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (long image = 0; image < n; image++) {
        for (long k = 0; k < c; k += LANES) {
            const float *from = x + image * pixels * c, *given = coming + image * pixels / 4 * c;
            float *to = found + image * pixels * c;
            vec middle = GET(mean + image * c + k), inverse = GET(root + image * c + k);
            vec by = inverse * GET(scale + k), plus = GET(shift + k) - middle * by;
            vec sums = {0}, products = {0};
            for (long h = 0; h < height; h += 2) {
                vec sum = {0}, product = {0};
                for (long w = 0; w < width; w += 2) {
                    vec g = 0.25f * GET(given + (h / 2 * (width / 2) + w / 2) * c + k);
                    for (int i = 0; i < 4; i++) {
                        vec value = GET(from + ((h + i / 2) * width + w + i % 2) * c + k);
                        vec own = (vec)((mask)g & (value * by + plus > 0.0f));
                        sum += own;
                        product += own * (value - middle);
                    }
                }
                sums += sum;
                products += product;
            }
            products *= inverse;
            AT(total + image * c + k) = sums;
            AT(along + image * c + k) = products;
            vec offset = sums / (float)pixels, slope = products / (float)pixels * inverse;
            for (long h = 0; h < height; h += 2)
                for (long w = 0; w < width; w += 2) {
                    vec g = 0.25f * GET(given + (h / 2 * (width / 2) + w / 2) * c + k);
                    for (int i = 0; i < 4; i++) {
                        long at = ((h + i / 2) * width + w + i % 2) * c + k;
                        vec value = GET(from + at);
                        vec own = (vec)((mask)g & (value * by + plus > 0.0f));
                        AT(to + at) = by * (own - offset - slope * (value - middle));
                    }
                }
        }
    }
}

/* Gradient of norm_relu_pool_gradient: of a sum of what it found, each times of_found (n, height, width, c), of_scale and
 * of_shift (c); by x, by scale (each image's, (n, c)) and by coming. By shift there is none but where a pixel is zero. */
static void norm_relu_pool_second(const float *x, const float *scale, const float *shift, const float *mean, const float *root,
                           const float *coming, const float *of_found, const float *of_scale, const float *of_shift,
                           float *by_x, float *by_scale, float *by_coming, long n, long height, long width, long c,
                           int threads) {
    long pixels = height * width;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (long image = 0; image < n; image++) {
        for (long k = 0; k < c; k += LANES) {
            const float *from = x + image * pixels * c, *given = coming + image * pixels / 4 * c;
            const float *asked = of_found + image * pixels * c;
            vec middle = GET(mean + image * c + k), inverse = GET(root + image * c + k), factor = GET(scale + k);
            vec by = inverse * factor, plus = GET(shift + k) - middle * by;
            vec total = {0}, along = {0}, others = {0}, others_along = {0}, both = {0};
            for (long h = 0; h < height; h++) {
                vec sums[5] = {{0}, {0}, {0}, {0}, {0}};
                for (long w = 0; w < width; w++) {
                    vec value = GET(from + (h * width + w) * c + k), other = GET(asked + (h * width + w) * c + k);
                    vec g = 0.25f * GET(given + (h / 2 * (width / 2) + w / 2) * c + k);
                    vec own = (vec)((mask)g & (value * by + plus > 0.0f)), normal = (value - middle) * inverse;
                    sums[0] += own;
                    sums[1] += own * normal;
                    sums[2] += other;
                    sums[3] += other * normal;
                    sums[4] += own * other;
                }
                total += sums[0];
                along += sums[1];
                others += sums[2];
                others_along += sums[3];
                both += sums[4];
            }
            float share = 1.0f / (float)pixels;
            vec scales = GET(of_scale + k), shifts = GET(of_shift + k);
            vec inner = both - share * (total * others + along * others_along);
            vec of_own = scales - by * others_along * share, of_other = -by * along * share;
            vec offset = share * (of_own * total + of_other * others);
            vec slope = share * (of_own * along + of_other * others_along + inverse * factor * inner);
            AT(by_scale + image * c + k) = inverse * inner;
            for (long h = 0; h < height; h += 2)
                for (long w = 0; w < width; w += 2) {
                    long pooled = (image * pixels / 4 + h / 2 * (width / 2) + w / 2) * c + k;
                    vec g = 0.25f * GET(coming + pooled), sum = {0};
                    for (int i = 0; i < 4; i++) {
                        long at = ((h + i / 2) * width + w + i % 2) * c + k;
                        vec value = GET(from + at), other = GET(asked + at), normal = (value - middle) * inverse;
                        mask kept = value * by + plus > 0.0f;
                        vec own = (vec)((mask)g & kept);
                        AT(by_x + image * pixels * c + at) =
                            inverse * (of_own * own + of_other * other - offset - slope * normal);
                        vec wanted = by * (other - share * (others + normal * others_along)) + scales * normal + shifts;
                        sum += (vec)((mask)wanted & kept);
                    }
                    AT(by_coming + pooled) = 0.25f * sum;
                }
        }
    }
}

#undef vec
#undef mask
#undef positive
#undef to_points
#undef from_points
#undef back_to_points
#undef tiles_to_points
#undef points_to_tiles
#undef tiles_back_to_points
#undef first_weight
#undef norm_relu_pool
#undef norm_relu_pool_gradient
#undef norm_relu_pool_second
