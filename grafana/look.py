# SPDX-License-Identifier: Apache-2.0
"""How every dashboard looks: panels with their defaults, colours, thresholds, cells.

In: texts, units and queries of a panel. Out: builders of grafana-foundation-sdk. Called by `boards`.

Colours are Grafana's named ones, which each theme draws in its own shade; no hexadecimal colour, no "black"
or "white". Every option is one that Grafana 9.4 and the current release both know (tests/stack/grafana holds
them against the published types of both).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from grafana_foundation_sdk.builders import common, dashboard
from grafana_foundation_sdk.builders import heatmap as heat
from grafana_foundation_sdk.builders.bargauge import Panel as BarGauge
from grafana_foundation_sdk.builders.heatmap import Panel as Heatmap
from grafana_foundation_sdk.builders.nodegraph import Panel as NodeGraph
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heat_options
from grafana_foundation_sdk.models.prometheus import PromQueryFormat, QueryEditorMode

from grafana.query import STEP

DATASOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")

CALM, WARN, BAD, PLAIN = "green", "orange", "red", "text"
DIRECTION: Final[Mapping[str, str]] = {
    "transmit": "blue",
    "receive": "purple",
    "read": "purple",
    "write": "blue",
}
BYTES, BYTES_PER_S, SHARE, COUNT, SECONDS = "decbytes", "Bps", "percentunit", "short", "s"
TEXT, TIME = "string", "dateTimeAsIsoNoDateIfToday"

Panel = Timeseries | Stat | Table | BarGauge | NodeGraph | Heatmap
AnyPanel = TypeVar("AnyPanel", Timeseries, Stat, Table, BarGauge, NodeGraph, Heatmap)


@dataclass(frozen=True)
class Text:
    """What a panel says about itself; `empty` is what it means to show nothing, `no_value` that in short."""

    title: str
    says: str
    empty: str
    no_value: str = "no data"


@dataclass(frozen=True)
class Place:
    """Columns of 24 and rows of 30 pixels; at 1280 pixels a column is about 50."""

    width: int
    height: int


# ---- queries -------------------------------------------------------------------------------------


def _query(expression: str, ref: str) -> Dataquery:
    query = Dataquery().datasource(DATASOURCE).expr(expression).ref_id(ref)
    return query.editor_mode(QueryEditorMode.CODE)


def over_time(expression: str, legend: str, ref: str = "A") -> Dataquery:
    """A range query. `legend` names its series: `{{label}}`."""
    query = _query(expression, ref).range().interval(STEP)
    return query.format(PromQueryFormat.TIME_SERIES).legend_format(legend)


def buckets(expression: str, ref: str = "A") -> Dataquery:
    """A range query of a histogram's buckets (label `le`), for `heatmap`."""
    query = _query(expression, ref).range().interval(STEP)
    return query.format(PromQueryFormat.HEATMAP).legend_format("{{le}}")


def at_end(expression: str, legend: str, ref: str = "A") -> Dataquery:
    """An instant query at the end of the range on the screen: one value a series."""
    query = _query(expression, ref).instant()
    return query.format(PromQueryFormat.TIME_SERIES).legend_format(legend)


def rows(expression: str, ref: str = "A") -> Dataquery:
    """An instant query whose labels become the columns of a table."""
    return _query(expression, ref).instant().format(PromQueryFormat.TABLE)


# ---- tables' columns -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Property:
    name: str
    value: object

    def build(self) -> model.DynamicConfigValue:
        return model.DynamicConfigValue(id_val=self.name, value=self.value)


@dataclass(frozen=True)
class Column:
    """One column: `source` is the label, or "Value #A" of query A ("Value" where there is but one query).

    `gauge` draws the number as a bar from 0 to 1, `levels` colour its text, `words` stand for numbers,
    `link` is where a click on a cell leads to. At most one column of a table is `sorted` (largest first), or
    `lowest_first`.
    """

    source: str
    title: str
    unit: str = TEXT
    width: int = 0
    gauge: bool = False
    levels: Mapping[float, str] | None = None
    words: Mapping[str, tuple[str, str]] | None = None
    link: tuple[str, str] | None = None
    sorted: bool = False
    lowest_first: bool = False

    def properties(self) -> list[_Property]:
        """What the override of this column's field sets."""
        found = [_Property("unit", self.unit)]
        if self.width:
            found.append(_Property("custom.width", self.width))
        if self.gauge:
            found += [_Property("min", 0), _Property("max", 1), _Property("color", {"mode": "thresholds"})]
            found.append(_Property("custom.cellOptions", {"type": "gauge", "mode": "basic"}))
        elif self.levels or self.words:
            found.append(_Property("color", {"mode": "thresholds"}))
            found.append(_Property("custom.cellOptions", {"type": "color-text"}))
        if self.levels:
            steps = thresholds(self.levels).build()
            found.append(_Property("thresholds", steps.to_json()))
        if self.words:
            found.append(_Property("mappings", [value_words(self.words)]))
        if self.link:
            title, url = self.link
            found.append(_Property("links", [{"title": title, "url": url, "targetBlank": False}]))
        return found


def value_words(words: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """A value mapping: number as text -> (what is shown instead, its colour)."""
    shown = {
        number: {"text": text, "color": colour, "index": index}
        for index, (number, (text, colour)) in enumerate(words.items())
    }
    return {"type": "value", "options": shown}


# ---- panels --------------------------------------------------------------------------------------


def _dress(panel: AnyPanel, text: Text, unit: str, place: Place, queries: Sequence[Dataquery]) -> AnyPanel:
    panel.title(text.title).description(f"{text.says}\n\n**When empty:** {text.empty}")
    panel.datasource(DATASOURCE).unit(unit).no_value(text.no_value)
    panel.height(place.height).span(place.width).targets(list(queries))
    return panel


def lines(text: Text, unit: str, place: Place, *queries: Dataquery) -> Timeseries:
    """Curves over time, with their mean, largest and last value in a table below."""
    panel = _dress(Timeseries(), text, unit, place, queries)
    legend = common.VizLegendOptions().display_mode(options.LegendDisplayMode.TABLE)
    legend.placement(options.LegendPlacement.BOTTOM).show_legend(True)
    legend.calcs(["mean", "max", "lastNotNull"]).sort_by("Mean").sort_desc(True)
    tooltip = common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI)
    panel.legend(legend).tooltip(tooltip.sort(options.SortOrder.DESCENDING))
    panel.draw_style(options.GraphDrawStyle.LINE).line_width(1).fill_opacity(5)
    panel.line_interpolation(options.LineInterpolation.LINEAR).show_points(options.VisibilityMode.NEVER)
    panel.min(0).color_scheme(_palette()).thresholds(thresholds())
    return panel.span_nulls(False).scale_distribution(
        common.ScaleDistributionConfig().type(options.ScaleDistribution.LINEAR)
    )


def stacked(text: Text, unit: str, place: Place, *queries: Dataquery) -> Timeseries:
    """Areas on top of each other: the whole, and what it is made of."""
    stacking = common.StackingConfig().mode(options.StackingMode.NORMAL).group("A")
    return lines(text, unit, place, *queries).fill_opacity(45).stacking(stacking)


def heatmap(text: Text, place: Place, query: Dataquery) -> Heatmap:
    """Durations over time: a field for each bucket and step, the stronger its colour the more in it."""
    panel = _dress(Heatmap(), text, SECONDS, place, [query]).thresholds(thresholds())
    colour = heat.HeatmapColorOptions().mode(heat_options.HeatmapColorMode.SCHEME).scheme("Blues").steps(64)
    panel.color(colour.exponent(0.5).scale(heat_options.HeatmapColorScale.EXPONENTIAL).reverse(False))
    panel.calculate(False).cell_gap(1).show_legend().show_tooltip().exemplars_color("text")
    panel.filter_values(heat.FilterValueRange().le(1e-9)).show_value(options.VisibilityMode.NEVER)
    return panel.y_axis(heat.YAxisConfig().unit(SECONDS).axis_placement(options.AxisPlacement.LEFT))


def limited(panel: Timeseries, levels: Mapping[float, str], base: str = CALM) -> Timeseries:
    """`panel` with a dashed line at each of these values."""
    style = common.GraphThresholdsStyleConfig().mode(options.GraphTresholdsStyleMode.DASHED)
    return panel.thresholds(thresholds(levels, base)).thresholds_style(style)


def stat(text: Text, unit: str, place: Place, *queries: Dataquery) -> Stat:
    """Single values in large letters; coloured by thresholds."""
    panel = _dress(Stat(), text, unit, place, queries).reduce_options(_last())
    panel.orientation(options.VizOrientation.AUTO).text_mode(options.BigValueTextMode.AUTO)
    panel.color_mode(options.BigValueColorMode.VALUE).graph_mode(options.BigValueGraphMode.NONE)
    return panel.justify_mode(options.BigValueJustifyMode.AUTO).thresholds(thresholds())


def bars(text: Text, unit: str, place: Place, *queries: Dataquery) -> BarGauge:
    """One horizontal bar a series, as long as its last value."""
    panel = _dress(BarGauge(), text, unit, place, queries).reduce_options(_last())
    panel.orientation(options.VizOrientation.HORIZONTAL).display_mode(options.BarGaugeDisplayMode.BASIC)
    return panel.show_unfilled(True).min(0).thresholds(thresholds())


def table(text: Text, place: Place, columns: Sequence[Column], *queries: Dataquery) -> Table:
    """A table with exactly these columns, in this order; `queries` by `rows`, joined by their labels."""
    panel = _dress(Table(), text, TEXT, place, queries).show_header(True)
    panel.thresholds(thresholds()).color_scheme(_fixed(PLAIN))
    panel.with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
    wanted = {column.source: column for column in columns}
    organize = {
        "excludeByName": {},
        "indexByName": {name: place for place, name in enumerate(wanted)},
        "renameByName": {column.source: column.title for column in columns},
    }
    keep = {"include": {"names": list(wanted)}}
    panel.with_transformation(model.DataTransformerConfig(id_val="filterFieldsByName", options=keep))
    panel.with_transformation(model.DataTransformerConfig(id_val="organize", options=organize))
    for column in columns:
        panel.override_by_name(column.title, [property_.build() for property_ in column.properties()])
    for column in columns:
        if column.sorted or column.lowest_first:
            order = common.TableSortByFieldState().display_name(column.title).desc(column.sorted)
            panel.sort_by([order])
    return panel


def node_graph(text: Text, place: Place, nodes: Dataquery, edges: Dataquery) -> NodeGraph:
    """Circles and arrows; `nodes` and `edges` by `rows`, their labels named as the panel wants them."""
    return _dress(NodeGraph(), text, TEXT, place, (nodes, edges)).thresholds(thresholds())


# ---- colours -------------------------------------------------------------------------------------


def thresholds(levels: Mapping[float, str] | None = None, base: str = CALM) -> dashboard.ThresholdsConfig:
    """Colours from these values on, `base` below; without levels, plain text."""
    steps = [model.Threshold(value=None, color=base if levels else PLAIN)]
    steps += [model.Threshold(value=value, color=colour) for value, colour in (levels or {}).items()]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


def color_of(name: str, colour: str) -> tuple[str, list[model.DynamicConfigValue]]:
    """Arguments of `override_by_name`: the series of this name has always this colour."""
    return name, [_Property("color", {"mode": "fixed", "fixedColor": colour}).build()]


def link_of(name: str, title: str, url: str) -> tuple[str, list[model.DynamicConfigValue]]:
    """Arguments of `override_by_name`: a click on this field leads there."""
    return name, [_Property("links", [{"title": title, "url": url, "targetBlank": False}]).build()]


def _palette() -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC)


def _fixed(colour: str) -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(model.FieldColorModeId.FIXED).fixed_color(colour)


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False)


def axis(unit: str) -> list[model.DynamicConfigValue]:
    """Properties of an override: a scale of its own on the right."""
    placed = _Property("custom.axisPlacement", "right")
    return [_Property("unit", unit).build(), placed.build()]
