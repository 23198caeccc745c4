/* Tables and fields on a terminal: alignment by what a terminal shows (not bytes), and text from
 * outside made harmless. See cli.h. */
#include <stdio.h>
#include <string.h>
#include <wchar.h>

#include "lib/base/check.h"
#include "lib/base/mem.h"
#include "lib/base/size.h"
#include "lib/base/strbuf.h"
#include "tools/cli.h"

#define CLI_TABLE_COLUMNS 16u
#define CLI_CELL_MAX      64 /* columns on the terminal; longer text is cut, but in the last one */
#define CLI_SAFE_MAX      500u

/* One UTF-8 character at p (never at the end): its bytes, and its code point or -1 when it is not
 * valid, which then is one byte long. */
static size_t cli_utf8(const unsigned char *p, int *ret_code)
{
    size_t n = *p < 0x80 ? 1 : (*p & 0xe0) == 0xc0 ? 2 : (*p & 0xf0) == 0xe0 ? 3 : 4;
    int code = n == 1 ? *p : *p & (0x7f >> n);

    *ret_code = -1;
    if (n == 1 || *p < 0xc2 || *p > 0xf4) {
        if (*p < 0x80)
            *ret_code = code;
        return 1;
    }
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 1;
        code = code << 6 | (p[i] & 0x3f);
    }
    *ret_code = code;
    return n;
}

/* Columns that a character takes; -1 for what must not reach a terminal (C0, C1, DEL, and the
 * characters that turn the writing direction). */
static int cli_columns(int code)
{
    int w;

    if (code < 0x20 || (code >= 0x7f && code < 0xa0) || (code >= 0x202a && code <= 0x202e) ||
        (code >= 0x2066 && code <= 0x2069))
        return -1;
    w = code < 0x80 ? 1 : wcwidth((wchar_t)code);
    return w < 0 ? 1 : w;
}

/* Appends the text made safe, up to max columns; returns the columns. */
static size_t cli_add_safe(struct strbuf *out, const char *text, size_t max)
{
    const unsigned char *p = (const unsigned char *)text;
    size_t width = 0;

    while (*p) {
        int code, w;
        size_t n = cli_utf8(p, &code);

        w = cli_columns(code);
        if (width + (size_t)(w < 0 ? 1 : w) > max) {
            strbuf_adds(out, "~");
            return width + 1;
        }
        if (w < 0)
            strbuf_addc(out, '?');
        else
            strbuf_add(out, p, n);
        width += (size_t)(w < 0 ? 1 : w);
        p += n;
    }
    return width;
}

const char *cli_safe(const char *text)
{
    static struct strbuf slots[8];
    static unsigned next;
    struct strbuf *s = &slots[next++ % 8];

    strbuf_reset(s);
    strbuf_adds(s, "");
    cli_add_safe(s, text, CLI_SAFE_MAX);
    return s->data;
}

/* ---- Tables --------------------------------------------------------------------------------- */

struct cli_cell {
    char *text;
    size_t width;
};

struct cli_table {
    const char *const *headings;
    size_t columns, count, room, widths[CLI_TABLE_COLUMNS];
    struct cli_cell *cells;
};

static bool cli_right(const struct cli_table *t, size_t column)
{
    return t->headings[column][0] == '>';
}

static const char *cli_heading(const struct cli_table *t, size_t column)
{
    return t->headings[column] + (cli_right(t, column) ? 1 : 0);
}

struct cli_table *cli_table_new(const char *const *headings, size_t columns)
{
    struct cli_table *t = mem_zalloc(sizeof(*t));

    CHECK(columns > 0 && columns <= CLI_TABLE_COLUMNS);
    t->headings = headings;
    t->columns = columns;
    for (size_t i = 0; i < columns; i++)
        t->widths[i] = strlen(cli_heading(t, i));
    return t;
}

void cli_table_cell(struct cli_table *t, const char *text)
{
    struct strbuf safe = STRBUF_INIT;
    struct cli_cell *cell;
    size_t column = t->count % t->columns;

    if (t->count == t->room) {
        t->room = t->room ? 2 * t->room : 64;
        t->cells = mem_realloc(t->cells, t->room * sizeof(*t->cells));
    }
    cell = &t->cells[t->count++];
    strbuf_adds(&safe, "");
    cell->width = cli_add_safe(&safe, text, column + 1 == t->columns ? CLI_SAFE_MAX : CLI_CELL_MAX);
    cell->text = strbuf_take(&safe);
    if (cell->width > t->widths[column])
        t->widths[column] = cell->width;
}

void cli_table_number(struct cli_table *t, uint64_t n)
{
    char text[24];

    snprintf(text, sizeof(text), "%llu", (unsigned long long)n);
    cli_table_cell(t, text);
}

void cli_table_size(struct cli_table *t, uint64_t bytes)
{
    char text[SIZE_TEXT_MAX];

    cli_table_cell(t, size_format(bytes, text));
}

static void cli_print_cell(const struct cli_table *t, size_t column, const char *text, size_t width)
{
    int pad = (int)(t->widths[column] - width);
    bool last = column + 1 == t->columns;

    if (cli_right(t, column))
        printf("%*s%s", pad, "", text);
    else
        printf("%s%*s", text, last ? 0 : pad, ""); /* no blanks at the end of a line */
    fputs(last ? "\n" : "  ", stdout);
}

void cli_table_print(const struct cli_table *t)
{
    CHECK(t->count % t->columns == 0);
    for (size_t i = 0; i < t->columns; i++)
        cli_print_cell(t, i, cli_heading(t, i), strlen(cli_heading(t, i)));
    for (size_t i = 0; i < t->count; i++)
        cli_print_cell(t, i % t->columns, t->cells[i].text, t->cells[i].width);
}

void cli_table_free(struct cli_table *t)
{
    for (size_t i = 0; i < t->count; i++)
        mem_free(t->cells[i].text);
    mem_free(t->cells);
    mem_free(t);
}

/* ---- Fields --------------------------------------------------------------------------------- */

const char *cli_date(const char *text, char buf[12])
{
    if (strlen(text) != 8 || strspn(text, "0123456789") != 8)
        return text;
    snprintf(buf, 12, "%.4s-%.2s-%.2s", text, text + 4, text + 6);
    return buf;
}

void cli_print_field(const char *name, const char *value)
{
    printf("%-14s%s\n", name, cli_safe(value));
}

void cli_print_size(const char *name, uint64_t bytes)
{
    char text[SIZE_TEXT_MAX];

    cli_print_field(name, size_format(bytes, text));
}
