# SPDX-License-Identifier: Apache-2.0
"""The dashboards as they are checked in: current, complete, readable, in both supported Grafanas."""

from __future__ import annotations

import doctest
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from grafana import check, query
from kernob.state.endings import ending_of

PANEL_TYPES = {"timeseries", "stat", "table", "bargauge", "gauge", "heatmap", "nodeGraph", "text", "logs"}
"""Those that Grafana 9.4 and the current release both have."""

THEMED_COLOUR = re.compile(
    r"((super-light|light|semi-dark|dark)-)?(green|yellow|orange|red|blue|purple)|text"
)
BOARDS = check.load()


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def every_panel() -> list[Any]:
    return [pytest.param(p, id=f"{uid}: {p['title']}") for uid, b in BOARDS.items() for p in panels(b)]


def every_board() -> list[Any]:
    return [pytest.param(board, id=uid) for uid, board in BOARDS.items()]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="grafana-foundation-sdk needs Python 3.11")
def test_the_files_are_what_the_generator_writes() -> None:
    """No dashboard is edited by hand, none is forgotten, none is left over."""
    from grafana import generate

    assert generate.differing() == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="grafana-foundation-sdk needs Python 3.11")
def test_a_second_run_writes_the_same(tmp_path: Any) -> None:
    """The generator makes a directory current, repairs what was changed in it, and then has nothing to do."""
    from grafana import generate

    names = [f"{uid}.json" for uid in sorted(BOARDS)]
    (tmp_path / "gone.json").write_text("{}", encoding="utf-8")
    assert generate.write(tmp_path) == ["gone.json", *names]
    (tmp_path / names[0]).write_text("edited", encoding="utf-8")
    assert generate.write(tmp_path) == [names[0]]
    assert generate.write(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_the_home_dashboard_is_there() -> None:
    """The three dashboards of the stack exist under the names that other parts link to."""
    assert {"kernob-bandwidth", "kernob-host", "kernob-self"} <= BOARDS.keys()


def test_failed_ends_are_those_of_the_agent() -> None:
    """Who came and went calls an exit code or a signal a failure exactly where the agent does."""
    panel = next(p for p in panels(BOARDS["kernob-lifecycle"]) if p["title"] == "How programs ended")
    text = panel["targets"][0]["expr"]
    codes, signals = (
        re.search(rf'{label}!~"([^"]*)"', text) for label in ("process_exit_code", "kernob_exit_signal")
    )
    assert codes
    assert signals
    for code in range(256):
        assert bool(re.fullmatch(codes[1], str(code))) != ending_of(code << 8).failed, code
    for number in range(1, 32):
        ending = ending_of(number)
        assert bool(re.fullmatch(signals[1], ending.signal)) != ending.failed, ending.signal


@pytest.mark.parametrize("board", every_board())
def test_panels_are_numbered_once_and_do_not_overlap(board: dict[str, Any]) -> None:
    """Ids are unique; no two panels share a cell; nothing is wider than the 24 columns; rows leave no gap."""
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, f"{panel['title']} covers {taken[x, y]}"
                taken[x, y] = panel["title"]
    height = 1 + max(y for _x, y in taken)
    assert {y for _x, y in taken} == set(range(height))


@pytest.mark.parametrize("board", every_board())
def test_titles_are_unique(board: dict[str, Any]) -> None:
    """Nobody has to ask which of two panels is meant."""
    titles = [panel["title"] for panel in board["panels"]]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("board", every_board())
def test_dashboards_lead_to_each_other(board: dict[str, Any]) -> None:
    """The links carry time range and variables, by the tag that every dashboard has."""
    assert "kernob" in board["tags"]
    (link,) = [each for each in board["links"] if each["type"] == "dashboards"]
    assert link["tags"] == ["kernob"]
    assert link["keepTime"]
    assert link["includeVars"]


@pytest.mark.parametrize("board", every_board())
def test_links_of_rows_set_a_variable_of_the_board_they_lead_to(board: dict[str, Any]) -> None:
    """With the value of a column that the table has; what is kept is a variable of the own board."""
    own = {each["name"] for each in board["templating"]["list"]}
    for panel in board["panels"]:
        overrides = panel.get("fieldConfig", {}).get("overrides", [])
        columns = {each["matcher"]["options"] for each in overrides}
        for link in (
            link
            for each in overrides
            for one in each["properties"]
            if one["id"] == "links"
            for link in one["value"]
        ):
            uid, variable, column = re.match(  # type: ignore[union-attr]
                r'/d/([\w-]+)\?\$\{__url_time_range}&var-(\w+)=\$\{__data\.fields\["(.+?)"]}', link["url"]
            ).groups()
            assert variable in {each["name"] for each in BOARDS[uid]["templating"]["list"]}
            assert column in columns
            assert set(re.findall(r"\$\{(\w+):queryparam}", link["url"])) <= own


@pytest.mark.parametrize("board", every_board())
def test_variables_are_safe_in_regular_expressions(board: dict[str, Any]) -> None:
    """A variable of several values stands behind =~ only, and is one that Grafana escapes."""
    several = {each["name"] for each in board["templating"]["list"] if each.get("multi")}
    names = {each["name"] for each in board["templating"]["list"]}
    texts = [target["expr"] for _panel, target in check.targets(board)]
    texts += [each["expr"] for each in board["annotations"]["list"]]
    texts += [v["query"]["query"] for v in board["templating"]["list"] if v["type"] == "query"]
    for text in texts:
        for operator, name in re.findall(r'(=~|!~|!=|=)"\$\{?(\w+)\}?"', text):
            assert name in several
            assert operator == "=~"
        used = set(re.findall(r"\$\{?([A-Za-z_]\w*)", text)) - {"__range", "__rate_interval", "__interval"}
        assert used <= names
    assert len(names) == len(board["templating"]["list"])


@pytest.mark.parametrize("board", every_board())
def test_a_variable_s_filter_keeps_whole_values(board: dict[str, Any]) -> None:
    """It captures nothing, since Grafana would take what is captured for the value."""
    for each in board["templating"]["list"]:
        assert list(check.filtered(["eth0"], each.get("regex", ""))) == ["eth0"]
    with pytest.raises(ValueError, match="captures"):
        check.filtered(["eth0"], "/(eth)0/")


def test_virtual_interfaces_are_no_choice() -> None:
    """Bridges, their ends, tunnels and loopback would count bytes twice, or none that leave."""
    (each,) = [v for v in BOARDS["kernob-bandwidth"]["templating"]["list"] if v["name"] == "interface"]
    virtual = ["lo", "veth12ab", "docker0", "br-cda629d65038", "wg0", "tun0", "ifb1", "virbr0"]
    real = ["eth0", "ens3", "bond0", "wlan0", "lonely0", "enp0s31f6"]
    assert list(check.filtered([*virtual, *real], each["regex"])) == real


@pytest.mark.parametrize("board", every_board())
def test_every_variable_is_used(board: dict[str, Any]) -> None:
    """What can be chosen changes something."""
    text = json.dumps([board["panels"], board["annotations"]])
    for each in board["templating"]["list"]:
        assert f"${each['name']}" in text or f"${{{each['name']}" in text


@pytest.mark.parametrize("panel", every_panel())
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    """It has a type both Grafanas know, a unit, a description, what emptiness means, and a text for it."""
    assert panel["type"] in PANEL_TYPES
    says, _, empty = panel["description"].partition("**When empty:**")
    assert len(says) > 20
    assert len(empty) > 10
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"]
    assert 0 < len(defaults["noValue"]) <= 30
    assert defaults["thresholds"]["steps"][0]["value"] is None
    values = [step["value"] for step in defaults["thresholds"]["steps"][1:]]
    assert values == sorted(values)


@pytest.mark.parametrize("panel", every_panel())
def test_a_panel_is_readable_at_1280(panel: dict[str, Any]) -> None:
    """A column is about 49 pixels there: curves need 290 and a legend of three lines; titles, columns fit."""
    at = panel["gridPos"]
    if panel["type"] in ("timeseries", "table"):
        assert at["w"] >= 6
        assert at["h"] >= 6
    assert len(panel["title"]) * 8 <= at["w"] * 49
    if panel["type"] == "table":
        widths = [
            next((p["value"] for p in override["properties"] if p["id"] == "custom.width"), 100)
            for override in panel["fieldConfig"]["overrides"]
        ]
        assert sum(widths) <= at["w"] * 49 - 16


@pytest.mark.parametrize("panel", every_panel())
def test_colours_fit_both_themes(panel: dict[str, Any]) -> None:
    """Only named colours, which each theme draws in its own shade."""
    for colour in colours(panel):
        assert THEMED_COLOUR.fullmatch(colour), colour


def colours(part: Any) -> Iterator[str]:
    """Every colour anywhere in a panel."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ("color", "fixedColor", "iconColor") and isinstance(value, str):
                yield value
            else:
                yield from colours(value)
    elif isinstance(part, list):
        for value in part:
            yield from colours(value)


@pytest.mark.parametrize("panel", every_panel())
def test_queries_ask_the_chosen_data_source_once_each(panel: dict[str, Any]) -> None:
    """Each has its own letter, and the data source variable."""
    references = [target["refId"] for target in panel["targets"]]
    assert references == sorted(set(references))
    for part in (panel, *panel["targets"]):
        assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize("panel", every_panel())
def test_counters_are_read_by_their_increase(panel: dict[str, Any]) -> None:
    """Over two minutes or more (twice the agent's re-send interval), and never by rate().

    A gauge's most in a step may be joined to what it last was: in a short step there may be no sample.
    """
    most = re.compile(r"max_over_time\(\w+\{[^{}]*\}\[\$__interval\]\)")
    for target in panel["targets"]:
        expression = re.sub(r'"[^"]*"', '""', target["expr"])
        if f"[{query.NOW}]" in expression:
            expression = most.sub("", expression)
        assert not re.search(r"\b(i?rate|delta)\(", expression)
        for counter, window in re.findall(r"(\w+_(?:total|bucket)\b)(?:\{[^{}]*\})?(\[.*?\])?", expression):
            assert window, f"{counter} is not read over a window"
        for window in re.findall(r"\[([^\]]+)\]", expression):
            assert window in ("$__range", query.WINDOW, query.NOW, "1h")
        if query.WINDOW in expression:
            assert target["interval"] == query.STEP  # its rate interval is then 2 minutes or more


@pytest.mark.parametrize("panel", every_panel())
def test_no_byte_is_summed_twice(panel: dict[str, Any]) -> None:
    """The byte metrics are three views of the same bytes: a query reads one, unless it counts series."""
    views = re.compile(r"(process_network_io|kernob_flow_io|kernob_process_flow_io)_bytes_total")
    for target in panel["targets"]:
        if "count by (__name__)" not in target["expr"]:
            assert len(set(views.findall(target["expr"]))) <= 1


@pytest.mark.parametrize("panel", every_panel())
def test_a_busy_host_stays_readable(panel: dict[str, Any]) -> None:
    """What has a series a process, service, destination or device is limited to the first few."""
    many = re.compile(r"by \([^)]*(process_pid|kernob_service|server_address)")
    for target in panel["targets"]:
        if many.search(target["expr"]):
            assert re.search(r"\b(top|bottom)k(_avg|_max)?\(", target["expr"])


def test_values_stand_in_queries_as_grafana_writes_them() -> None:
    """One value is escaped, several are alternatives, all is what the variable says or all there are."""
    assert check.one_of(["10.0.0.1"]) == "10\\\\.0\\\\.0\\\\.1"
    assert check.one_of(["a+b", "c|d"]) == "(a\\\\+b|c\\\\|d)"
    shown = check.Range(0, 30 * 86_400)
    assert check.interpolate("x[$__rate_interval] ${__range}", {}, shown, "30s") == "x[1h12m30s] 2592000s"
    with pytest.raises(KeyError):
        check.interpolate("$unknown", {}, shown)


def test_examples_in_docstrings_are_true() -> None:
    """The doctests of the query pieces and of the checker."""
    assert doctest.testmod(query).failed == 0
    assert doctest.testmod(check).failed == 0
