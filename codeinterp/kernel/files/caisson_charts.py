"""What a matplotlib figure shows, as numbers and words."""

import datetime
import math
import re

import numpy
from matplotlib import dates
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.container import BarContainer
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch, Rectangle, Wedge
from matplotlib.text import Text

UNIT = re.compile(r"\s\((.*?)\)|\[(.*?)\]")


def chart(figure):
    """The chart of a figure; {} for one without data."""
    axes = [a for a in figure.axes if a.has_data()]
    if not axes:
        return {}
    if len(axes) == 1:
        return axes_chart(axes[0])
    title = figure._suptitle.get_text() if figure._suptitle is not None else None
    return {"type": "superchart", "title": title or None, "elements": [axes_chart(a) for a in axes]}


def axes_chart(ax):
    artists = [a for a in ax._children if not isinstance(a, Text)]

    def only(*kinds):
        return bool(artists) and all(isinstance(a, kinds) for a in artists)

    if only(Line2D):
        return points_chart(ax, "line", [(a, line_points(a)) for a in artists])
    if only(PathPatch, Line2D):
        return box_chart(ax, artists)
    artists = [a for a in artists if not is_grid(a)]
    if only(PathCollection):
        return points_chart(ax, "scatter", [(a, a.get_offsets()) for a in artists])
    if only(Wedge):
        return pie_chart(ax, artists)
    if only(Rectangle):
        return bar_chart(ax, artists)
    # A band around a line shows how sure it is.
    lines = [a for a in artists if isinstance(a, Line2D)]
    if lines and all(isinstance(a, (Line2D, PolyCollection)) for a in artists):
        return points_chart(ax, "line", [(a, line_points(a)) for a in lines])
    return {"type": "unknown", "title": title(ax), "elements": []}


def is_grid(artist):
    """A line of two points along an axis, such as axhline's."""
    if not isinstance(artist, Line2D):
        return False
    x, y = artist.get_xdata(orig=False), artist.get_ydata(orig=False)
    return len(x) == 2 and len(y) == 2 and (x[0] == x[1] or y[0] == y[1])


# --- words -------------------------------------------------------------------


def title(ax):
    return ax.get_title() or None


def unit(label):
    found = UNIT.search(label or "")
    return (found.group(1) or found.group(2)) if found else None


def words(ax, swapped=False):
    x, y = ax.get_xlabel() or None, ax.get_ylabel() or None
    if swapped:
        x, y = y, x
    return {"title": title(ax), "x_label": x, "y_label": y, "x_unit": unit(x), "y_unit": unit(y)}


def numbered(label, prefix, name):
    """matplotlib's name of what the user gave none, in words."""
    label = str(label)
    rest = label[len(prefix) :]
    return f"{name} {rest}" if label.startswith(prefix) and rest.isdigit() else label


def value(v):
    """v as JSON can carry it."""
    if isinstance(v, (datetime.date, datetime.datetime)):
        return v.isoformat()
    if isinstance(v, numpy.datetime64):
        return str(numpy.datetime_as_string(v, unit="s"))
    if isinstance(v, numpy.generic):
        v = v.item()
    if isinstance(v, float) and not math.isfinite(v):
        return None
    if v is None or isinstance(v, (bool, int, float, str)):
        return v
    return str(v)


def rounded(v):
    return float(f"{float(v):.8g}")


# --- axes --------------------------------------------------------------------


def is_dates(axis):
    return isinstance(axis.converter, (dates.DateConverter, dates._SwitchableDateConverter))


def labels(axis):
    return [t.get_text() for t in axis.get_ticklabels()]


def is_categorical(axis, ticks, texts):
    if axis.get_scale() != "linear" or not ticks or ticks != list(range(len(ticks))):
        return False
    return texts != [str(int(t)) for t in ticks] and texts != [axis.get_major_formatter()(t) for t in ticks] or any(
        not number(t) for t in texts
    )


def number(text):
    try:
        float(text.replace("\N{MINUS SIGN}", "-"))
    except ValueError:
        return False
    return True


def describe(axis, letter):
    ticks, texts = [float(t) for t in axis.get_ticklocs()], labels(axis)
    scale = axis.get_scale()
    if is_dates(axis):
        scale, ticks = "datetime", [dates.num2date(t).isoformat() for t in ticks]
    elif is_categorical(axis, ticks, texts):
        scale = "categorical"
    return {f"{letter}_ticks": ticks, f"{letter}_tick_labels": texts, f"{letter}_scale": scale}


def near(axis, at):
    """The label of the tick at a place, or else the place."""
    ticks, texts = [float(t) for t in axis.get_ticklocs()], labels(axis)
    if is_dates(axis):
        return dates.num2date(at).isoformat()
    named = [(abs(t - at), text) for t, text in zip(ticks, texts) if text]
    if named and not all(number(text) for _, text in named):
        return min(named)[1]
    exact = [text for distance, text in named if distance < 1e-9]
    return exact[0] if exact else f"{at:.8g}"


# --- charts ------------------------------------------------------------------


def line_points(line):
    return zip(numpy.asarray(line.get_xdata(orig=True)), numpy.asarray(line.get_ydata(orig=True)))


def points_chart(ax, kind, series):
    x_dates, y_dates = is_dates(ax.xaxis), is_dates(ax.yaxis)

    def place(v, as_date):
        if as_date and isinstance(v, (int, float, numpy.number)):
            return dates.num2date(v).isoformat()
        return value(v)

    elements = [
        {
            "label": numbered(artist.get_label(), "_child", "Line" if kind == "line" else "Group"),
            "points": [[place(x, x_dates), place(y, y_dates)] for x, y in points],
        }
        for artist, points in series
    ]
    return {
        "type": kind,
        **words(ax),
        **describe(ax.xaxis, "x"),
        **describe(ax.yaxis, "y"),
        "elements": elements,
    }


def bar_chart(ax, rectangles):
    bars = [c for c in ax.containers if isinstance(c, BarContainer)]
    groups = [(numbered(c.get_label(), "_container", "Group"), list(c.patches)) for c in bars]
    known = {id(p) for _, patches in groups for p in patches}
    loose = [r for r in rectangles if id(r) not in known]
    if loose:
        groups.append(("Group 0", loose))
    every = [p for _, patches in groups for p in patches]
    flat = any(c.orientation == "horizontal" for c in bars)
    if not bars:
        flat = len(every) > 1 and len({rounded(p.get_height()) for p in every}) == 1
    elements = []
    for group, patches in groups:
        for p in patches:
            if flat:
                at, size, axis = p.get_y() + p.get_height() / 2, p.get_width(), ax.yaxis
            else:
                at, size, axis = p.get_x() + p.get_width() / 2, p.get_height(), ax.xaxis
            elements.append({"label": near(axis, rounded(at)), "group": group, "value": value(size)})
    return {"type": "bar", **words(ax, swapped=flat), "elements": elements}


def pie_chart(ax, wedges):
    elements = [
        {"label": w.get_label(), "angle": round(abs(w.theta2 - w.theta1)), "radius": value(w.r)} for w in wedges
    ]
    return {"type": "pie", "title": title(ax), "elements": elements}


def box_chart(ax, artists):
    boxes, lines = [], []
    for a in artists:
        if isinstance(a, PathPatch):
            v = a.get_path().vertices
            boxes.append((v[:, 0].min(), v[:, 0].max(), v[:, 1].min(), v[:, 1].max()))
        else:
            lines.append((a, numpy.asarray(a.get_xdata(orig=False)), numpy.asarray(a.get_ydata(orig=False))))
    flat = len({rounded(b[3] - b[2]) for b in boxes}) == 1 and len({rounded(b[1] - b[0]) for b in boxes}) > 1
    if len(boxes) == 1 and lines:
        # The whiskers, which are drawn first, lie along the values.
        flat = len(lines[0][2]) == 2 and lines[0][2][0] == lines[0][2][1]
    elements = []
    for left, right, low, high in boxes:
        if flat:
            left, right, low, high = low, high, left, right
        near_ones = []
        for artist, x, y in lines:
            across, along = (y, x) if flat else (x, y)
            if len(across) and left - 1e-9 <= across.mean() <= right + 1e-9:
                near_ones.append((artist, across, along))
        element = box_element(near_ones, low, high)
        axis = ax.yaxis if flat else ax.xaxis
        elements.append({"label": near(axis, rounded((left + right) / 2)), **element})
    return {"type": "box_and_whisker", **words(ax, swapped=flat), "elements": elements}


def box_element(lines, low, high):
    least, most, median, outliers = low, high, None, []
    for artist, across, along in lines:
        if artist.get_linestyle() in ("None", "none", "", " "):
            outliers.extend(rounded(v) for v in along)
            continue
        if across[0] == across[-1]:  # a whisker
            least, most = min(least, along.min()), max(most, along.max())
        elif low <= along[0] <= high and along[0] == along[-1] and (median is None or low < along[0] < high):
            median = along[0]
    return {
        "min": rounded(least),
        "first_quartile": rounded(low),
        "median": None if median is None else rounded(median),
        "third_quartile": rounded(high),
        "max": rounded(most),
        "outliers": outliers,
    }
