# SPDX-License-Identifier: Apache-2.0
"""What surrounds the panels: a dashboard's settings, its variables, and the links to the others.

In: uid, title, texts. Out: builders. Called by `boards`. A dashboard with the tag `kernob` appears among the
links of all the others by itself.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as model

from grafana.look import DATASOURCE
from grafana.query import HOST, VIRTUAL_DEVICES, select

TAG = "kernob"
SCHEMA_VERSION = 38
"""That of Grafana 9.4 (table cells as `cellOptions`); later releases migrate it when they load it."""

Link = dashboard.DashboardLink
VARIABLES_IN_LINKS = "${__url_time_range}&${__all_variables}"


def new(uid: str, title: str, description: str, since: str = "now-1h") -> dashboard.Dashboard:
    """An empty dashboard with the links and the data source variable."""
    board = dashboard.Dashboard(title).uid(uid).description(description).tags([TAG])
    board.time(since, "now").refresh("30s").timezone("browser")
    board.tooltip(model.DashboardCursorSync.CROSSHAIR).link(_siblings())
    board._internal.schema_version = SCHEMA_VERSION  # noqa: SLF001  the builders have no method for it
    return board.with_variable(_datasource())


def _siblings() -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("Kernob").type(model.DashboardLinkType.DASHBOARDS).tags([TAG])
    return link.as_dropdown(False).include_vars(True).keep_time(True).target_blank(False)


def see(title: str, uid: str) -> dashboard.DashboardLink:
    """A panel's link to another dashboard, with the time range and all variables."""
    link = dashboard.DashboardLink(title).type(model.DashboardLinkType.LINK)
    return link.url(f"/d/{uid}?{VARIABLES_IN_LINKS}").target_blank(False)


def filtered(uid: str, variable: str, field_name: str, *kept: str) -> str:
    """Address of a dashboard: `variable` set to a row's `field_name`, the range and `kept` as they are."""
    others = "".join(f"&${{{name}:queryparam}}" for name in ("datasource", *kept))
    return f'/d/{uid}?${{__url_time_range}}&var-{variable}=${{__data.fields["{field_name}"]}}{others}'


# ---- variables -----------------------------------------------------------------------------------


def _datasource() -> dashboard.DatasourceVariable:
    variable = dashboard.DatasourceVariable("datasource").label("Data source")
    chosen = model.VariableOption(selected=True, text="VictoriaMetrics", value="victoriametrics")
    return variable.type("prometheus").multi(False).include_all(False).current(chosen)


def _labels(name: str, label: str, description: str, series: str, key: str) -> dashboard.QueryVariable:
    """A variable of several values, all of them by default, read anew when the time range changes."""
    everything = model.VariableOption(selected=True, text=["All"], value=["$__all"])
    query: dict[str, object] = {"query": f"label_values({series}, {key})", "refId": f"variable-{name}"}
    variable = dashboard.QueryVariable(name).label(label).description(description)
    variable.datasource(DATASOURCE).query(query).multi(True).include_all(True).current(everything)
    return variable.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(
        model.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC
    )


def host(series: str) -> dashboard.QueryVariable:
    """Hosts that `series` know. What has no host name is of none of them."""
    return _labels("host", "Host", "Hosts that sent data", series, "host_name").all_value(".+")


def interface() -> dashboard.QueryVariable:
    """Interfaces of the chosen hosts. All means all that are no bridge, tunnel or loopback: no byte twice.

    The expression must capture nothing: Grafana would take the first group for the value.
    """
    series = select("system_network_io_bytes_total", HOST)
    variable = _labels("interface", "Interface", "Without bridges, tunnels and loopback", series, "device")
    return variable.regex(f"/^(?!(?:{VIRTUAL_DEVICES})$).*$/")


def service(metric: str = "kernob_flow_io_bytes_total") -> dashboard.QueryVariable:
    """Services of the chosen hosts that `metric` knows."""
    series = select(metric, HOST)
    says = "Container, unit, script or program"
    return _labels("service", "Service", says, series, "kernob_service").all_value(".*")


def peer_class() -> dashboard.QueryVariable:
    """Classes of edges: localhost, internal, external, self-hosted."""
    series = select("kernob:map:edge", HOST)
    return _labels("class", "Class", "Where the peer lives", series, "kernob_peer_class").all_value(".*")


def call(metric: str) -> dashboard.QueryVariable:
    """System calls of the chosen services."""
    series = select(metric, HOST, 'kernob_service=~"$service"')
    says = "System calls that the agent measures (KERNOB_SYSCALLS)"
    return _labels("call", "Call", says, series, "kernob_syscall").all_value(".*")


def destination() -> dashboard.QueryVariable:
    """Destinations of the chosen services."""
    series = select("kernob_flow_io_bytes_total", HOST, 'kernob_service=~"$service"')
    says = "Name or address at the other end; the own one where this host serves"
    return _labels("destination", "Destination", says, series, "server_address").all_value(".*")


# ---- annotations ---------------------------------------------------------------------------------


class _PrometheusAnnotation(model.AnnotationQuery):
    """An annotation query with what Prometheus' data source reads beside `expr`."""

    title = ""
    text = ""

    def to_json(self) -> dict[str, object]:
        """The published fields, and the data source's own."""
        own: dict[str, object] = {
            "step": "30s",
            "tagKeys": "",
            "textFormat": self.text,
            "titleFormat": self.title,
            "useValueForTime": True,
        }
        return {**super().to_json(), **own}


class Marks(dashboard.AnnotationQuery):
    """Vertical marks where the value of `expression` (milliseconds since 1970) lies, named by labels."""

    def __init__(self, name: str, colour: str, expression: str, title: str, text: str) -> None:
        super().__init__()
        self._internal = query = _PrometheusAnnotation()
        query.title, query.text = title, text
        self.name(name).datasource(DATASOURCE).enable(True).hide(False).icon_color(colour).expr(expression)
