/* Draws a slice of a body: ellipses for what is in it, noise for how it was seen; see phantom.h.
 *
 * What matters to a store is how the samples compress and that no two slices are the same. Both
 * come from the noise: white noise through a 3x3 binomial kernel, which gives the short-range
 * texture that reconstruction kernels leave in real CT. Its amplitude is set so that zstd and the
 * plane predictor reach about the ratios measured on a real thorax. Air is quieter than tissue, and
 * outside the round field of view all samples are zero, as in scanners' images.
 */
#include "tools/phantom/phantom.h"

#include <math.h>
#include <string.h>

#include "lib/base/mem.h"

#define SAMPLE_MAX 4095
#define WATER      1024 /* CT: stored value of 0 HU (rescale intercept -1024) */

struct canvas {
    int32_t rows, columns;
    uint16_t *pixels;
};

/* Centre and radii in units of the half side: -1..1 covers the picture. */
struct ellipse {
    double x, y, rx, ry;
};

static int32_t clamp(int32_t v, int32_t low, int32_t high)
{
    return v < low ? low : v > high ? high : v;
}

static void fill(const struct canvas *c, struct ellipse e, int32_t value)
{
    double half_rows = c->rows / 2.0, half_columns = c->columns / 2.0;
    int32_t top = clamp((int32_t)floor((e.y - e.ry + 1) * half_rows), 0, c->rows);
    int32_t bottom = clamp((int32_t)ceil((e.y + e.ry + 1) * half_rows), 0, c->rows);

    if (e.rx <= 0 || e.ry <= 0)
        return;
    for (int32_t row = top; row < bottom; row++) {
        double dy = ((row + 0.5) / half_rows - 1 - e.y) / e.ry;
        double reach = 1 - dy * dy;
        int32_t left, right;

        if (reach <= 0)
            continue;
        reach = sqrt(reach) * e.rx;
        left = clamp((int32_t)lround((e.x - reach + 1) * half_columns), 0, c->columns);
        right = clamp((int32_t)lround((e.x + reach + 1) * half_columns), 0, c->columns);
        for (int32_t column = left; column < right; column++)
            c->pixels[row * c->columns + column] = (uint16_t)value;
    }
}

static struct ellipse grown(struct ellipse e, double by)
{
    return (struct ellipse){e.x, e.y, e.rx * by, e.ry * by};
}

/* Lungs with vessels in them; z runs from 0 to 1 along the body. */
static void draw_lungs(const struct canvas *c, struct rng *body, double z)
{
    double size = sin(M_PI * z);
    struct ellipse left = {-0.34, -0.03, 0.25 * size, 0.36 * size};
    struct ellipse right = {0.34, -0.03, 0.27 * size, 0.38 * size};

    fill(c, left, WATER - 860);
    fill(c, right, WATER - 850);
    for (int i = 0; i < 24; i++) {
        const struct ellipse *lung = i & 1 ? &left : &right;
        double angle = 2 * M_PI * rng_unit(body), far = 0.85 * rng_unit(body);
        double size_here = 0.008 + 0.02 * rng_unit(body), drift = rng_unit(body) - 0.5;

        fill(c,
             (struct ellipse){lung->x + lung->rx * far * cos(angle + drift * z),
                              lung->y + lung->ry * far * sin(angle + drift * z), size_here,
                              size_here * 1.3},
             WATER + 20);
    }
}

static void draw_bones(const struct canvas *c, double z)
{
    struct ellipse vertebra = {0.0, 0.34, 0.13, 0.10 + 0.01 * sin(40 * z)};

    fill(c, vertebra, WATER + 420);
    fill(c, grown(vertebra, 0.82), WATER + 180);
    fill(c, (struct ellipse){0.0, 0.475, 0.05, 0.045}, WATER + 25); /* the canal */
    fill(c, (struct ellipse){0.0, 0.56, 0.025, 0.06}, WATER + 520);
    for (int i = 0; i < 10; i++) { /* ribs come and go along the body */
        double angle = 2 * M_PI * (i + 2.5 * z) / 10;

        fill(c, (struct ellipse){0.68 * cos(angle), 0.02 + 0.47 * sin(angle), 0.035, 0.022},
             WATER + 600);
    }
}

static void draw_ct(const struct image_spec *spec, const struct canvas *c, double z)
{
    struct rng body = rng_for(spec->seed, "body", 0);
    double girth = 0.95 + 0.08 * rng_unit(&body);
    struct ellipse trunk = {0, 0.02, (0.78 - 0.06 * cos(3 * z)) * girth, (0.56 + 0.02 * z) * girth};

    fill(c, (struct ellipse){0, 0, 1, 1}, WATER - 1000);        /* air within the field of view */
    fill(c, (struct ellipse){0, 0.72, 0.6, 0.04}, WATER - 600); /* the table */
    fill(c, trunk, WATER - 100);                                /* fat */
    fill(c, grown(trunk, 0.93), WATER + 50);                    /* muscle */
    draw_lungs(c, &body, z);
    fill(c, (struct ellipse){-0.06, -0.12, 0.20 * sin(M_PI * z), 0.19}, WATER + 45); /* heart */
    fill(c, (struct ellipse){-0.09, 0.2, 0.055, 0.055}, WATER + 160);                /* aorta */
    fill(c, (struct ellipse){0.38, 0.05, 0.25 * z, 0.26 * z}, WATER + 62);           /* liver */
    draw_bones(c, z);
}

static void draw_mr(const struct image_spec *spec, const struct canvas *c, double z)
{
    struct rng body = rng_for(spec->seed, "body", 0);
    double size = sqrt(sin(M_PI * (0.15 + 0.7 * z)));
    struct ellipse head = {0, 0, 0.66 * size, 0.8 * size};

    fill(c, head, 620);              /* scalp */
    fill(c, grown(head, 0.94), 60);  /* skull */
    fill(c, grown(head, 0.88), 180); /* fluid */
    fill(c, grown(head, 0.85), 300); /* grey matter */
    fill(c, grown(head, 0.70), 400); /* white matter */
    for (int i = 0; i < 30; i++) {   /* folds */
        double angle = 2 * M_PI * rng_unit(&body), turn = rng_unit(&body) * z;

        fill(c,
             (struct ellipse){head.rx * 0.76 * cos(angle + turn),
                              head.ry * 0.76 * sin(angle + turn), 0.035, 0.05},
             290);
    }
    fill(c, (struct ellipse){-0.09, -0.02, 0.06 * size, 0.2 * size}, 120); /* ventricles */
    fill(c, (struct ellipse){0.09, -0.02, 0.06 * size, 0.2 * size}, 120);
}

/* One row of white noise with standard deviation 4: the number of ones in 64 random bits. The two
 * samples beyond the row's ends let the kernel reach over the edge. */
static void white_noise(struct rng *r, int16_t *row, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        row[i] = (int16_t)(__builtin_popcountll(rng_next(r)) - 32);
}

/* Adds noise to every sample above zero. The kernel (1 2 1) x (1 2 1) makes its standard deviation
 * 24; `tissue` and `air` are 64ths of that. */
static void add_noise(const struct canvas *c, struct rng *r, int32_t tissue, int32_t air)
{
    int32_t wide = c->columns + 2;
    int16_t *ring = mem_alloc(3 * (size_t)wide * sizeof(*ring));

    white_noise(r, ring, wide);
    white_noise(r, ring + wide, wide);
    for (int32_t row = 0; row < c->rows; row++) {
        const int16_t *above = ring + row % 3 * wide, *here = ring + (row + 1) % 3 * wide;
        int16_t *below = ring + (row + 2) % 3 * wide;
        uint16_t *pixels = c->pixels + row * c->columns;

        white_noise(r, below, wide);
        for (int32_t i = 0; i < c->columns; i++) {
            int32_t left = above[i] + 2 * here[i] + below[i];
            int32_t middle = above[i + 1] + 2 * here[i + 1] + below[i + 1];
            int32_t right = above[i + 2] + 2 * here[i + 2] + below[i + 2];
            int32_t level = pixels[i] < 256 ? air : tissue;
            int32_t noise = (left + 2 * middle + right) * level / 64;

            if (pixels[i])
                pixels[i] = (uint16_t)clamp(pixels[i] + noise, 0, SAMPLE_MAX);
        }
    }
    mem_free(ring);
}

void image_draw(const struct image_spec *spec, uint32_t index, uint16_t *pixels)
{
    struct canvas c = {(int32_t)spec->rows, (int32_t)spec->columns, pixels};
    struct rng noise = rng_for(spec->seed, "noise", index);
    double z = (index + 0.5) / spec->slices;

    memset(pixels, 0, (size_t)spec->rows * spec->columns * sizeof(*pixels));
    if (spec->modality == MODALITY_CT) {
        draw_ct(spec, &c, z);
        add_noise(&c, &noise, 44, 22);
    } else {
        draw_mr(spec, &c, z);
        add_noise(&c, &noise, 48, 24);
    }
}
