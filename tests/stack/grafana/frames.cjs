// SPDX-License-Identifier: Apache-2.0
// Runs Grafana's own code (@grafana/data) on what VictoriaMetrics answered to the dashboards' queries.
//
//     node frames.cjs 9|13 < panels.json
//
// In, on standard input: [{dashboard, panel, results: {refId: result of Prometheus' API}}].
// Out, on standard output: [{dashboard, title, fields: [names as shown], rows, problems: [text]}].
//
// Frames are built as Grafana's Prometheus data source builds them (@grafana/prometheus 13.2.3,
// result_transformer, transformDFToTable: one frame a series; tables one frame a query, labels sorted, the
// value called "Value #A", or "Value" if only one query answered). Then come the panel's transformations,
// its field options and overrides, and each value's display text.
'use strict';

// What Grafana asks a browser for: the language dates are written in, and whether a scene is on the screen.
globalThis.navigator ??= { language: 'en-US', languages: ['en-US'] };

const release = process.argv[2];
const data = require({ 9: 'grafana-data-9', 13: '@grafana/data' }[release] ?? `release ${release} is not known`);

globalThis.window ??= {}; // only now: with it, packages under these two look for a document

// ---- what Grafana's application registers when it starts -------------------------------------------

// one transformation stands in the list under two names
const transformers = new Map(Object.values(data.standardTransformers).map((each) => [each.id, each]));
data.standardTransformersRegistry.setInit(() =>
  [...transformers.values()].map((transformation) => ({
    id: transformation.id,
    name: transformation.name,
    transformation: release === '9' ? transformation : () => Promise.resolve(transformation),
  }))
);

const STANDARD = ['unit', 'min', 'max', 'decimals', 'displayName', 'noValue', 'color', 'thresholds', 'mappings', 'links'];
const CUSTOM = ['width', 'cellOptions', 'axisPlacement'];

const property = (id, path, isCustom) => ({
  id,
  path,
  name: id,
  isCustom,
  editor: () => null,
  override: () => null,
  process: (value) => value,
  shouldApply: () => true,
  settings: {},
});
const properties = new data.Registry(() => [
  ...STANDARD.map((id) => property(id, id, false)),
  ...CUSTOM.map((id) => property(`custom.${id}`, id, true)),
]);

const units = new Set(data.getValueFormats().flatMap((category) => category.submenu.map((unit) => unit.value)));

// ---- frames ----------------------------------------------------------------------------------------

function legend(format, labels) {
  return format.replace(/\{\{\s*(.+?)\s*\}\}/g, (_, name) => labels[name] ?? '');
}

function samples(series) {
  return series.values ?? [series.value];
}

function seriesFrames(target, result) {
  return result.map((series) => {
    const values = samples(series);
    return data.toDataFrame({
      refId: target.refId,
      fields: [
        { name: 'Time', type: 'time', values: values.map(([time]) => time * 1000) },
        {
          name: 'Value',
          type: 'number',
          labels: series.metric,
          config: { displayNameFromDS: legend(target.legendFormat, series.metric) },
          values: values.map(([, value]) => Number(value)),
        },
      ],
    });
  });
}

function tableFrame(target, result, answered) {
  const labels = [];
  for (const series of result) {
    for (const label of Object.keys(series.metric).sort()) {
      if (!labels.includes(label)) {
        labels.push(label);
      }
    }
  }
  const rows = result.flatMap((series) => samples(series).map(([time, value]) => [time * 1000, value, series.metric]));
  return data.toDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: 'time', values: rows.map(([time]) => time) },
      ...labels.map((name) => ({ name, type: 'string', values: rows.map(([, , metric]) => metric[name] ?? '') })),
      {
        name: answered > 1 ? `Value #${target.refId}` : 'Value',
        type: 'number',
        values: rows.map(([, value]) => Number(value)),
      },
    ],
  });
}

function frames(panel, results) {
  const answered = panel.targets.filter((target) => results[target.refId].length > 0);
  return answered.flatMap((target) =>
    target.format === 'table'
      ? [tableFrame(target, results[target.refId], answered.length)]
      : seriesFrames(target, results[target.refId])
  );
}

function transformed(panel, made) {
  return new Promise((resolve, reject) => {
    data.transformDataFrame(panel.transformations ?? [], made).subscribe({ next: resolve, error: reject });
  });
}

// ---- one panel -------------------------------------------------------------------------------------

async function look({ dashboard, panel, results }) {
  const problems = [];
  const made = frames(panel, results);
  const theme = data.createTheme({ colors: { mode: 'light' } });
  const shown = data.applyFieldOverrides({
    data: await transformed(panel, made),
    fieldConfig: panel.fieldConfig,
    replaceVariables: (text) => text,
    theme,
    timeZone: 'utc',
    fieldConfigRegistry: properties,
  });
  const numbers = shown.flatMap((frame) => frame.fields.map((field) => ({ field, frame })));
  const name = ({ field, frame }) => data.getFieldDisplayName(field, frame, shown);
  const names = numbers.map(name);

  if (made.length > 0) {
    checkOverrides(panel, shown, problems);
    checkTable(panel, shown, names, problems);
    checkNames(panel, numbers, name, problems);
    checkNodeGraph(panel, shown, problems);
  }
  checkUnits(panel, problems);
  checkReducers(panel, problems);
  for (const { field } of numbers) {
    checkDisplay(field, problems);
  }
  return {
    dashboard,
    title: panel.title,
    fields: names,
    rows: Math.max(0, ...shown.map((frame) => frame.length)),
    problems,
  };
}

function checkOverrides(panel, shown, problems) {
  for (const override of panel.fieldConfig.overrides) {
    const matches = data.fieldMatchers.get(override.matcher.id).get(override.matcher.options);
    const found = shown.some((frame) => frame.fields.some((field) => matches(field, frame, shown)));
    if (!found) {
      problems.push(`override of ${JSON.stringify(override.matcher.options)} matches no field`);
    }
    for (const { id } of override.properties) {
      if (!properties.getIfExists(id)) {
        problems.push(`override sets ${id}, which is not known`);
      }
    }
  }
}

function checkTable(panel, shown, names, problems) {
  if (panel.type !== 'table') {
    return;
  }
  if (shown.length !== 1) {
    problems.push(`a table of ${shown.length} frames shows only one of them`);
  }
  for (const sort of panel.options.sortBy ?? []) {
    if (!names.includes(sort.displayName)) {
      problems.push(`sorted by ${sort.displayName}, which is no column`);
    }
  }
  const { renameByName } = panel.transformations.find(({ id }) => id === 'organize').options;
  for (const wanted of Object.values(renameByName)) {
    if (!names.includes(wanted)) {
      problems.push(`column ${wanted} is missing`);
    }
  }
  for (const found of names) {
    if (!Object.values(renameByName).includes(found)) {
      problems.push(`column ${found} was not asked for`);
    }
  }
}

// What the panel needs or it draws nothing: nodes and edges by their fields, ids once, every end a node.
function checkNodeGraph(panel, shown, problems) {
  if (panel.type !== 'nodeGraph') {
    return;
  }
  const field = (frame, name) => frame.fields.find((each) => each.name === name);
  const values = (found) => (found ? Array.from(Array.isArray(found.values) ? found.values : found.values.toArray()) : []);
  const edges = shown.filter((frame) => field(frame, 'source') && field(frame, 'target'));
  const nodes = shown.filter((frame) => field(frame, 'id') && !field(frame, 'source'));
  if (nodes.length !== 1 || edges.length !== 1) {
    problems.push(`${nodes.length} frames of nodes and ${edges.length} of edges`);
    return;
  }
  const known = new Set(values(field(nodes[0], 'id')));
  for (const frame of [...nodes, ...edges]) {
    const ids = values(field(frame, 'id'));
    if (new Set(ids).size < ids.length) {
      problems.push('an id stands twice');
    }
  }
  for (const end of ['source', 'target']) {
    const lost = values(field(edges[0], end)).filter((id) => !known.has(id));
    if (lost.length) {
      problems.push(`${end} ${lost[0]} is no node`);
    }
  }
  const types = { id: 'string', title: 'string', subtitle: 'string', arc__good: 'number', arc__bad: 'number' };
  for (const [name, type] of Object.entries(types)) {
    if (field(nodes[0], name)?.type !== type) {
      problems.push(`${name} of nodes is ${field(nodes[0], name)?.type}, not ${type}`);
    }
  }
  for (const [name, type] of Object.entries({ source: 'string', target: 'string', mainstat: 'string', thickness: 'number' })) {
    if (field(edges[0], name)?.type !== type) {
      problems.push(`${name} of edges is ${field(edges[0], name)?.type}, not ${type}`);
    }
  }
  const good = values(field(nodes[0], 'arc__good'));
  const bad = values(field(nodes[0], 'arc__bad'));
  if (good.some((share, i) => !(share >= 0 && share <= 1 && Math.abs(share + bad[i] - 1) < 1e-6))) {
    problems.push("a node's arcs are no whole");
  }
}

function checkNames(panel, numbers, name, problems) {
  const shown = numbers.filter(({ field }) => field.type !== 'time').map(name);
  if (shown.some((text) => text.trim() === '')) {
    problems.push('a series has no name');
  }
  const oneFrame = panel.type !== 'table' && panel.type !== 'nodeGraph';
  if (oneFrame && new Set(shown).size < shown.length) {
    problems.push(`two series have one name: ${shown.filter((text, i) => shown.indexOf(text) !== i)}`);
  }
}

// A time by a format of its own is no unit of the list: it is known if it makes a time out of a number.
function isKnown(unit) {
  return units.has(unit) || (unit?.startsWith('time:') && /\b2001\b/.test(data.getValueFormat(unit)(1e12).text));
}

function checkUnits(panel, problems) {
  const used = [panel.fieldConfig.defaults.unit];
  for (const override of panel.fieldConfig.overrides) {
    used.push(...override.properties.filter(({ id }) => id === 'unit').map(({ value }) => value));
  }
  problems.push(...used.filter((unit) => !isKnown(unit)).map((unit) => `unit ${unit} is not known`));
}

function checkReducers(panel, problems) {
  const { legend: shown, reduceOptions } = panel.options;
  const wanted = [...(shown?.calcs ?? []), ...(reduceOptions?.calcs ?? [])];
  for (const id of wanted.filter((id) => !data.fieldReducers.getIfExists(id))) {
    problems.push(`reducer ${id} is not known`);
  }
  const reducers = wanted.map((id) => data.fieldReducers.getIfExists(id)?.name);
  if (shown?.sortBy && !reducers.includes(shown.sortBy)) {
    problems.push(`legend sorted by ${shown.sortBy}, but it has ${reducers}`);
  }
}

function checkDisplay(field, problems) {
  const values = Array.isArray(field.values) ? field.values : field.values.toArray();
  for (const value of values.slice(-3)) {
    const { text, color } = field.display(value);
    if (typeof text !== 'string') {
      problems.push(`${field.name}: ${value} has no display text`);
    }
    if (field.type === 'number' && color !== undefined && !/^(#|rgb)/.test(color)) {
      problems.push(`${field.name}: colour ${color} is not known to the theme`);
    }
  }
}

// ---- in and out ------------------------------------------------------------------------------------

async function main() {
  const chunks = [];
  for await (const chunk of process.stdin) {
    chunks.push(chunk);
  }
  const found = [];
  for (const each of JSON.parse(Buffer.concat(chunks).toString())) {
    found.push(await look(each));
  }
  process.stdout.write(JSON.stringify(found));
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
