# SPDX-License-Identifier: Apache-2.0
"""Configuration: environment, TOML file and command line enter, one frozen Settings leaves.

A setting's value is the first of: command line, environment variable, TOML file, default. dynaconf layers
these and runs the validators; it is imported only here and only while settings are loaded, because it
brings 5 to 8 MiB that a program which merely handles a Settings does not need. Its own reading of the
environment is not used: it would evaluate `@...` tokens inside values. Called by `cli`; everything else
receives a Settings.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kernob.config_otel import OTEL_SETTINGS, OtlpSettings, resolve
from kernob.config_scores import ScoreSettingError, score_rules
from kernob.config_settings import KERNOB_SETTINGS, WINDOW_MAX_S, Settings
from kernob.config_values import Endpoint, Kind, MisfitError, PathName, Setting
from kernob.errors import ConfigError

__all__ = [
    "DEFAULT_TOML",
    "MASK",
    "SETTINGS",
    "OtlpSettings",
    "Setting",
    "Settings",
    "load_settings",
    "shown",
    "without_credentials",
]

DEFAULT_TOML = Path("/etc/kernob/kernob.toml")
CONFIG_VARIABLE = "KERNOB_CONFIG"
MASK = "***"
_SHOWN_CHARACTERS = 80


SETTINGS: tuple[Setting, ...] = KERNOB_SETTINGS + OTEL_SETTINGS
_BY_VARIABLE = {setting.variable: setting for setting in SETTINGS}
_OUR_VARIABLES = tuple(setting.variable for setting in KERNOB_SETTINGS)
_BY_FIELD = {setting.field: setting for setting in KERNOB_SETTINGS}
_FIELDS = (
    *(f.name for f in fields(Settings) if f.name not in ("otlp", "otlp_logs", "origin")),
    *(f"otlp.{f.name}" for f in fields(OtlpSettings)),
    *(f"otlp_logs.{f.name}" for f in fields(OtlpSettings) if f.name != "export_interval_s"),
)


def shown(value: object) -> str:
    """`value` as it stands in a message: one printable line of bounded length."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def without_credentials(url: str) -> str:
    """`url` without the user and password that may stand before its host."""
    if "@" not in url:
        return url
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{MASK}@{rest.rpartition('@')[2]}"


def load_settings(
    environ: Mapping[str, str],
    toml_path: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Return the settings in force.

    `environ` is the environment (KERNOB_* and OTEL_* are looked at); `toml_path` a file that must exist
    (else KERNOB_CONFIG's, which must exist too, else DEFAULT_TOML if it exists); `overrides` maps fields
    of Settings to values of the command line.

    Raises ConfigError, one line naming the setting, its value, what would be valid and the nearest right
    name, for the first setting that is unknown, malformed or out of range.
    """
    from dynaconf import Dynaconf
    from dynaconf.loaders.base import SourceMetadata

    # No files, loaders or environment of dynaconf's own: only the layers put in below, lowest first.
    layers = Dynaconf(
        envvar_prefix=None,
        settings_files=[],
        loaders=[],
        core_loaders=[],
        environments=False,
        auto_cast=False,
    )
    origin: dict[str, str] = {}
    for source, values in (
        *_file_layer(_config_file(environ, toml_path)),
        ("environment", _environment_layer(environ)),
        ("command line", _override_layer(overrides or {})),
    ):
        layers.update(values, loader_identifier=SourceMetadata(source, "kernob", "global"), validate=False)
        origin.update(dict.fromkeys(values, source))
    return _settings(_validated(layers, origin), layers, origin)


def _unknown(name: str, where: str, known: Iterable[str], prefix: str = "") -> ConfigError:
    """The error for `name`, compared with the `known` names behind the `prefix` that all of them share."""
    rests = [each.removeprefix(prefix) for each in known]
    rest = name.removeprefix(prefix)
    near = [each for each in rests if len(rest) > 3 and each.startswith(f"{rest}_")]
    near = near or difflib.get_close_matches(rest, rests, n=1, cutoff=0.5)
    hint = f"did you mean {prefix}{near[0]}?" if near else "docs/configuration.md lists all"
    return ConfigError(f"{shown(name)[1:-1]} ({where}) is not a setting; {hint}")


def _invalid(variable: str, raw: object, source: str, expected: str) -> ConfigError:
    setting = _BY_VARIABLE[variable]
    if isinstance(setting.kind, Endpoint) and isinstance(raw, str):
        raw = without_credentials(raw)
    return ConfigError(
        f"{variable} is {MASK if setting.secret else shown(raw)} ({source}): must be {expected}"
    )


def _environment_layer(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the variables that are ours. An empty OTEL_ variable counts as unset, as OpenTelemetry rules."""
    layer = {}
    for name, text in environ.items():
        if name in _BY_VARIABLE:
            if text or not name.startswith("OTEL_"):
                layer[name] = text
        elif name.startswith("KERNOB_") and name != CONFIG_VARIABLE:
            raise _unknown(name, "environment", [*_OUR_VARIABLES, CONFIG_VARIABLE], "KERNOB_")
    return layer


def _override_layer(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the command line's values by variable; a program's mistake in a field's name is a KeyError."""
    return {_BY_FIELD[name].variable: value for name, value in overrides.items()}


def _config_file(environ: Mapping[str, str], toml_path: Path | None) -> Path | None:
    """Return the TOML file to read, checked to be readable, or None."""
    named = str(toml_path) if toml_path is not None else environ.get(CONFIG_VARIABLE)
    if named is None and not DEFAULT_TOML.exists():
        return None
    path = DEFAULT_TOML if named is None else Path(named)
    option = CONFIG_VARIABLE if toml_path is None else "--config"
    if path.suffix != ".toml":
        raise ConfigError(f"{option} is {shown(named)}: must be the path of a .toml file")
    try:
        PathName("file").parse(path.absolute())
    except ValueError as error:
        raise ConfigError(f"{option} is {shown(str(path))}: cannot be read: {error}") from error
    return path


def _file_layer(path: Path | None) -> list[tuple[str, dict[str, Any]]]:
    """Return the TOML file's values by variable, beside its path; nothing when there is no file."""
    if path is None:
        return []
    from dynaconf import Dynaconf
    from dynaconf.loaders import toml_loader

    # Its own instance, so that a file cannot set what is not a setting of ours.
    content = Dynaconf(envvar_prefix=None, settings_files=[], loaders=[], core_loaders=[], auto_cast=False)
    try:
        toml_loader.load(content, filename=[str(path)], silent=False)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, UnicodeDecodeError, too deep
        raise ConfigError(f"{path}: not valid TOML: {shown(str(error))[1:-1]}") from error
    loaded: dict[str, Any] = {}
    for metadata, values in content.loaded_by_loaders.items():
        if metadata.identifier == str(path):
            loaded.update(values)
    otel = loaded.pop("OTEL", {})
    if not isinstance(otel, Mapping):
        raise ConfigError(f"otel is {shown(otel)} ({path}): must be a table, [otel]")
    by_key = {setting.toml_key: setting.variable for setting in SETTINGS}
    layer = {}
    for key, value in [*loaded.items(), *((f"otel.{key}", value) for key, value in otel.items())]:
        if key.lower() not in by_key:
            raise _unknown(key.lower(), str(path), by_key)
        layer[by_key[key.lower()]] = value
    return [(str(path), layer)]


def _validated(layers: Any, origin: Mapping[str, str]) -> dict[str, Any]:
    """Run the validators over the layered values; return the parsed values by variable."""
    from dynaconf import ValidationError, Validator

    layers.validators.register(
        *(
            Validator(setting.variable, condition=setting.accepts)
            for setting in SETTINGS
            if setting.variable in origin
        )
    )
    try:
        layers.validators.validate()
    except ValidationError as error:
        variable = error.details[0][0].names[0]
        expected = _expected(_BY_VARIABLE[variable].kind, layers.get(variable))
        raise _invalid(variable, layers.get(variable), origin[variable], expected) from error
    return {variable: _BY_VARIABLE[variable].kind.parse(layers.get(variable)) for variable in origin}


def _expected(kind: Kind, raw: object) -> str:
    """What would have been valid instead of `raw`: the rest of "must be ..."."""
    try:
        kind.parse(raw)
    except MisfitError as misfit:
        return str(misfit)
    except ValueError:
        pass
    return kind.expects


def _settings(values: Mapping[str, Any], raw: Any, origin: Mapping[str, str]) -> Settings:
    """Put the parsed values into their fields; check what depends on more than one of them."""

    def complain(variable: str, expected: str) -> ConfigError:
        return _invalid(variable, raw.get(variable), origin[variable], expected)

    def source(variable: str) -> str:
        where = origin[variable]
        return f"{where} {variable}" if where == "environment" else where

    otlp = resolve(values, complain)
    given = {s.field: values[s.variable] for s in KERNOB_SETTINGS if s.variable in values}
    sources = dict.fromkeys(_FIELDS, "default")
    sources.update({s.field: source(s.variable) for s in KERNOB_SETTINGS if s.variable in values})
    sources.update({name: source(variable) for name, variable in otlp.sources.items()})

    interval_s = given.get("scrape_interval_s", Settings().scrape_interval_s)
    window_s = given.setdefault("aggregation_window_s", interval_s)
    ticks = round(window_s / interval_s)
    if ticks < 1 or abs(window_s - ticks * interval_s) > 1e-9 * window_s:
        raise complain(
            "KERNOB_AGGREGATION_WINDOW",
            f"a whole multiple of the scrape interval ({interval_s:g} s), at most {WINDOW_MAX_S:g} s",
        )
    settings = Settings(
        **given,
        resource_attributes=otlp.resource_attributes,
        otlp=otlp.metrics,
        otlp_logs=otlp.logs,
        origin=MappingProxyType(sources),
    )
    try:
        score_rules(settings)
    except ScoreSettingError as error:
        # the defaults fit together: at least one of these was given
        variable = next(name for name in error.variables if name in origin)
        raise complain(variable, error.expected) from error
    return settings
