/* What kernels.c does with vectors of LANES channels; included for each such number. Channels do not mix, so results do
 * not depend on it. */

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
#define pooled_together LANED(pooled_together)
#define gradient_together LANED(gradient_together)
#define second_together LANED(second_together)
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
INLINE void pooled_together(const int together, const float *x, const float *scale, const float *shift, float *y,
                            float *mean, float *root, float epsilon, long height, long width, long c) {
    vec total[MOST], spread[MOST], middle[MOST], by[MOST], plus[MOST];
    float pixels = (float)(height * width);
    EACH(v) total[v] = spread[v] = (vec){0};
    for (long h = 0; h < height; h++) { /* by rows, which bounds the rounding */
        vec sum[MOST], other[MOST];
        EACH(v) sum[v] = other[v] = (vec){0};
        for (long w = 0; w < width; w += 2) {
            EACH(v) sum[v] += GET(x + (h * width + w) * c + v * LANES);
            EACH(v) other[v] += GET(x + (h * width + w + 1) * c + v * LANES);
        }
        EACH(v) total[v] += sum[v] + other[v];
    }
    EACH(v) middle[v] = total[v] / pixels;
    for (long h = 0; h < height; h++) {
        vec sum[MOST], other[MOST];
        EACH(v) sum[v] = other[v] = (vec){0};
        for (long w = 0; w < width; w += 2)
            EACH(v) {
                vec a = GET(x + (h * width + w) * c + v * LANES) - middle[v];
                vec b = GET(x + (h * width + w + 1) * c + v * LANES) - middle[v];
                sum[v] += a * a;
                other[v] += b * b;
            }
        EACH(v) spread[v] += sum[v] + other[v];
    }
    EACH(v) {
        vec inverse;
        for (int i = 0; i < LANES; i++) inverse[i] = 1.0f / __builtin_sqrtf(spread[v][i] / pixels + epsilon);
        by[v] = inverse * GET(scale + v * LANES);
        plus[v] = GET(shift + v * LANES) - middle[v] * by[v];
        AT(mean + v * LANES) = middle[v];
        AT(root + v * LANES) = inverse;
    }
    for (long h = 0; h < height; h += 2)
        for (long w = 0; w < width; w += 2)
            EACH(v) {
                const float *a = x + (h * width + w) * c + v * LANES, *b = a + width * c;
                vec sum = positive(GET(a) * by[v] + plus[v]) + positive(GET(a + c) * by[v] + plus[v]) +
                          positive(GET(b) * by[v] + plus[v]) + positive(GET(b + c) * by[v] + plus[v]);
                AT(y + (h / 2 * (width / 2) + w / 2) * c + v * LANES) = 0.25f * sum;
            }
}

static void norm_relu_pool(const float *x, const float *scale, const float *shift, float *y, float *mean, float *root,
                           float epsilon, long n, long height, long width, long c, int threads) {
    long pixels = height * width, together = together_of(c, LANES);
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (long image = 0; image < n; image++)
        for (long k = 0; k < c; k += together * LANES)
            TOGETHER(pooled_together, x + image * pixels * c + k, scale + k, shift + k, y + image * pixels / 4 * c + k,
                     mean + image * c + k, root + image * c + k, epsilon, height, width, c);
}

/* Gradient of norm_relu_pool: coming (n, height/2, width/2, c), found (n, height, width, c); total and along (n, c) are
 * each image's gradients by shift and scale. */
INLINE void gradient_together(const int together, const float *x, const float *scale, const float *shift,
                              const float *mean, const float *root, const float *coming, float *found, float *total,
                              float *along, long height, long width, long c) {
    vec middle[MOST], by[MOST], plus[MOST], sums[MOST], products[MOST], offset[MOST], slope[MOST];
    float pixels = (float)(height * width);
    EACH(v) {
        middle[v] = GET(mean + v * LANES);
        by[v] = GET(root + v * LANES) * GET(scale + v * LANES);
        plus[v] = GET(shift + v * LANES) - middle[v] * by[v];
        sums[v] = products[v] = (vec){0};
    }
    for (long h = 0; h < height; h += 2) {
        vec sum[MOST], product[MOST];
        EACH(v) sum[v] = product[v] = (vec){0};
        for (long w = 0; w < width; w += 2)
            for (int i = 0; i < 4; i++)
                EACH(v) {
                    vec g = 0.25f * GET(coming + (h / 2 * (width / 2) + w / 2) * c + v * LANES);
                    vec value = GET(x + ((h + i / 2) * width + w + i % 2) * c + v * LANES);
                    vec own = (vec)((mask)g & (value * by[v] + plus[v] > 0.0f));
                    sum[v] += own;
                    product[v] += own * (value - middle[v]);
                }
        EACH(v) sums[v] += sum[v];
        EACH(v) products[v] += product[v];
    }
    EACH(v) {
        vec inverse = GET(root + v * LANES);
        products[v] *= inverse;
        AT(total + v * LANES) = sums[v];
        AT(along + v * LANES) = products[v];
        offset[v] = sums[v] / pixels;
        slope[v] = products[v] / pixels * inverse;
    }
    for (long h = 0; h < height; h += 2)
        for (long w = 0; w < width; w += 2)
            for (int i = 0; i < 4; i++)
                EACH(v) {
                    long at = ((h + i / 2) * width + w + i % 2) * c + v * LANES;
                    vec g = 0.25f * GET(coming + (h / 2 * (width / 2) + w / 2) * c + v * LANES);
                    vec value = GET(x + at);
                    vec own = (vec)((mask)g & (value * by[v] + plus[v] > 0.0f));
                    AT(found + at) = by[v] * (own - offset[v] - slope[v] * (value - middle[v]));
                }
}

static void norm_relu_pool_gradient(const float *x, const float *scale, const float *shift, const float *mean,
                                    const float *root, const float *coming, float *found, float *total, float *along,
                                    long n, long height, long width, long c, int threads) {
    long pixels = height * width, together = together_of(c, LANES);
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (long image = 0; image < n; image++)
        for (long k = 0; k < c; k += together * LANES) {
            long at = image * pixels * c + k, own = image * c + k;
            TOGETHER(gradient_together, x + at, scale + k, shift + k, mean + own, root + own,
                     coming + image * pixels / 4 * c + k, found + at, total + own, along + own, height, width, c);
        }
}

/* Gradient of norm_relu_pool_gradient: of a sum of what it found, each times of_found (n, height, width, c), of_scale and
 * of_shift (c); by x, by scale (each image's, (n, c)) and by coming. By shift there is none but where a pixel is zero. */
INLINE void second_together(const int together, const float *x, const float *scale, const float *shift, const float *mean,
                            const float *root, const float *coming, const float *of_found, const float *of_scale,
                            const float *of_shift, float *by_x, float *by_scale, float *by_coming, long height,
                            long width, long c) {
    vec middle[MOST], inverse[MOST], by[MOST], plus[MOST], sums[MOST][5];
    EACH(v) {
        middle[v] = GET(mean + v * LANES);
        inverse[v] = GET(root + v * LANES);
        by[v] = inverse[v] * GET(scale + v * LANES);
        plus[v] = GET(shift + v * LANES) - middle[v] * by[v];
        for (int i = 0; i < 5; i++) sums[v][i] = (vec){0};
    }
    for (long h = 0; h < height; h++) {
        vec sum[MOST][5];
        EACH(v) for (int i = 0; i < 5; i++) sum[v][i] = (vec){0};
        for (long w = 0; w < width; w++)
            EACH(v) {
                long at = (h * width + w) * c + v * LANES;
                vec value = GET(x + at), other = GET(of_found + at);
                vec g = 0.25f * GET(coming + (h / 2 * (width / 2) + w / 2) * c + v * LANES);
                vec own = (vec)((mask)g & (value * by[v] + plus[v] > 0.0f)), normal = (value - middle[v]) * inverse[v];
                sum[v][0] += own;
                sum[v][1] += own * normal;
                sum[v][2] += other;
                sum[v][3] += other * normal;
                sum[v][4] += own * other;
            }
        EACH(v) for (int i = 0; i < 5; i++) sums[v][i] += sum[v][i];
    }
    vec scales[MOST], shifts[MOST], of_own[MOST], of_other[MOST], offset[MOST], slope[MOST];
    float share = 1.0f / (float)(height * width);
    EACH(v) {
        vec total = sums[v][0], along = sums[v][1], others = sums[v][2], others_along = sums[v][3], both = sums[v][4];
        vec inner = both - share * (total * others + along * others_along), factor = GET(scale + v * LANES);
        scales[v] = GET(of_scale + v * LANES);
        shifts[v] = GET(of_shift + v * LANES);
        of_own[v] = scales[v] - by[v] * others_along * share;
        of_other[v] = -by[v] * along * share;
        offset[v] = share * (of_own[v] * total + of_other[v] * others);
        slope[v] = share * (of_own[v] * along + of_other[v] * others_along + inverse[v] * factor * inner);
        AT(by_scale + v * LANES) = inverse[v] * inner;
    }
    for (long h = 0; h < height; h += 2)
        for (long w = 0; w < width; w += 2)
            EACH(v) {
                long pooled = (h / 2 * (width / 2) + w / 2) * c + v * LANES;
                vec g = 0.25f * GET(coming + pooled), sum = {0}, others = sums[v][2], others_along = sums[v][3];
                for (int i = 0; i < 4; i++) {
                    long at = ((h + i / 2) * width + w + i % 2) * c + v * LANES;
                    vec value = GET(x + at), other = GET(of_found + at), normal = (value - middle[v]) * inverse[v];
                    mask kept = value * by[v] + plus[v] > 0.0f;
                    vec own = (vec)((mask)g & kept);
                    AT(by_x + at) = inverse[v] * (of_own[v] * own + of_other[v] * other - offset[v] - slope[v] * normal);
                    vec wanted =
                        by[v] * (other - share * (others + normal * others_along)) + scales[v] * normal + shifts[v];
                    sum += (vec)((mask)wanted & kept);
                }
                AT(by_coming + pooled) = 0.25f * sum;
            }
}

static void norm_relu_pool_second(const float *x, const float *scale, const float *shift, const float *mean,
                                  const float *root, const float *coming, const float *of_found, const float *of_scale,
                                  const float *of_shift, float *by_x, float *by_scale, float *by_coming, long n,
                                  long height, long width, long c, int threads) {
    long pixels = height * width, together = together_of(c, LANES);
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (long image = 0; image < n; image++)
        for (long k = 0; k < c; k += together * LANES) {
            long at = image * pixels * c + k, pooled = image * pixels / 4 * c + k, own = image * c + k;
            TOGETHER(second_together, x + at, scale + k, shift + k, mean + own, root + own, coming + pooled, of_found + at,
                     of_scale + k, of_shift + k, by_x + at, by_scale + own, by_coming + pooled, height, width, c);
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
#undef pooled_together
#undef gradient_together
#undef second_together
#undef norm_relu_pool
#undef norm_relu_pool_gradient
#undef norm_relu_pool_second
