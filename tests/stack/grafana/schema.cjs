// SPDX-License-Identifier: Apache-2.0
// Holds the dashboards against the types Grafana publishes, those of 9.4 and of the current release.
//
//     node schema.cjs < dashboards.json
//
// In, on standard input: [dashboard]. Out: one line for each thing a release does not know; exit code 1 then.
//
// Every part becomes an object literal of its published type, and TypeScript's compiler, which refuses
// properties and enumeration values a type does not have, judges it. Left out are what both releases give
// data sources room for without a type (an annotation's own fields, queries), and required fields, because
// Grafana fills in what is missing.
'use strict';

const path = require('node:path');
const ts = require('typescript');

// 13: one module a panel type. 9.4 publishes the parts, and its panels are put together from them here as
// public/app/plugins/panel/*/models.gen.ts of that release does; what no published part has is spelled out.
const TYPES = {
  9: `
    import * as g from 'grafana-schema-9';
    type VariableOfApplication = {
      allValue?: string | null; current?: unknown; includeAll?: boolean; multi?: boolean; refresh?: 0 | 1 | 2;
      regex?: string; sort?: 0 | 1 | 2 | 3 | 4 | 5 | 6;
    };
    type Dashboard = Omit<g.Dashboard, 'panels' | 'templating'>;
    type Variable = g.VariableModel & VariableOfApplication;
    type Panel = Omit<g.Panel, 'targets'>;
    type Row = g.RowPanel;
    type Options = {
      timeseries: g.OptionsWithLegend & g.OptionsWithTooltip;
      stat: g.SingleStatBaseOptions & {
        colorMode: g.BigValueColorMode; graphMode: g.BigValueGraphMode;
        justifyMode: g.BigValueJustifyMode; textMode: g.BigValueTextMode;
      };
      bargauge: g.SingleStatBaseOptions & { displayMode: g.BarGaugeDisplayMode; showUnfilled: boolean };
      table: { frameIndex: number; showHeader: boolean; sortBy?: g.TableSortByFieldState[] };
      heatmap: {
        calculate?: boolean; cellGap?: number; showValue?: g.VisibilityMode; legend?: { show: boolean };
        tooltip?: { show: boolean; yHistogram?: boolean }; filterValues?: { le?: number; ge?: number };
        color?: {
          mode: 'opacity' | 'scheme'; scheme?: string; fill?: string; scale?: 'linear' | 'exponential';
          exponent?: number; steps?: number; reverse?: boolean; min?: number; max?: number;
        };
        exemplars?: { color: string }; rowsFrame?: { value?: string; layout?: 'le' | 'ge' | 'unknown' | 'auto' };
        yAxis?: { unit?: string; axisPlacement?: g.AxisPlacement; reverse?: boolean };
      };
      nodeGraph: { nodes?: { mainStatUnit?: string }; edges?: { mainStatUnit?: string } };
    };
    type Custom = {
      timeseries: g.GraphFieldConfig; table: g.TableFieldOptions; stat: {}; bargauge: {}; nodeGraph: {};
      heatmap: { hideFrom?: g.HideSeriesConfig; scaleDistribution?: g.ScaleDistributionConfig };
    };`,
  13: `
    import * as g from '@grafana/schema';
    import type * as dashboard from '@grafana/schema/dist/types/raw/dashboard/x/types.gen';
    import type * as timeseries from '@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/types.gen';
    import type * as stat from '@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/types.gen';
    import type * as bargauge from '@grafana/schema/dist/types/raw/composable/bargauge/panelcfg/x/types.gen';
    import type * as heatmap from '@grafana/schema/dist/types/raw/composable/heatmap/panelcfg/x/types.gen';
    import type * as nodegraph from '@grafana/schema/dist/types/raw/composable/nodegraph/panelcfg/x/types.gen';
    import type * as table from '@grafana/schema/dist/types/raw/composable/table/panelcfg/x/types.gen';
    type Dashboard = Omit<dashboard.Dashboard, 'panels' | 'templating'>;
    type Variable = dashboard.VariableModel;
    type Panel = Omit<dashboard.Panel, 'targets'>;
    type Row = dashboard.RowPanel;
    type Options = {
      timeseries: timeseries.Options; stat: stat.Options; bargauge: bargauge.Options; table: table.Options;
      // \`show\` is 9.4's word, which a newer release turns into its own (mode) when it loads the panel
      heatmap: Omit<heatmap.Options, 'tooltip'> & { tooltip?: heatmap.Options['tooltip'] & { show?: boolean } };
      nodeGraph: nodegraph.Options;
    };
    type Custom = {
      timeseries: timeseries.FieldConfig; table: table.FieldConfig; stat: {}; bargauge: {}; nodeGraph: {};
      heatmap: heatmap.FieldConfig;
    };`,
};

// Enumerations as JSON has them, nothing required, null where a number may stand (the first threshold).
const PLAIN = `
  type Plain<T> = T extends string ? \`\${T}\`
    : T extends number ? T | null
    : T extends boolean | null | undefined ? T
    : T extends (infer U)[] ? Plain<U>[]
    : T extends object ? { [K in keyof T]?: Plain<T[K]> } : T;`;

const OF_THE_DATA_SOURCE = ['expr', 'step', 'tagKeys', 'textFormat', 'titleFormat', 'useValueForTime'];

function without(value, names) {
  return Object.fromEntries(Object.entries(value).filter(([name]) => !names.includes(name)));
}

// The literals of one dashboard: [where, type, value].
function* parts(board) {
  const list = board.annotations.list.map((query) => without(query, OF_THE_DATA_SOURCE));
  const bare = without({ ...board, annotations: { list } }, ['panels', 'templating']);
  yield [board.uid, 'Dashboard', bare];
  for (const variable of board.templating.list) {
    yield [`${board.uid}: variable ${variable.name}`, 'Variable', variable];
  }
  for (const panel of board.panels) {
    const where = `${board.uid}: ${panel.title}`;
    if (panel.type === 'row') {
      yield [where, 'Row', panel];
      continue;
    }
    yield [where, 'Panel', without(panel, ['targets'])];
    yield [`${where}, options`, `Options['${panel.type}']`, panel.options];
    yield [`${where}, custom`, `Custom['${panel.type}']`, panel.fieldConfig.defaults.custom ?? {}];
    const properties = panel.fieldConfig.overrides.flatMap((override) => override.properties);
    for (const { id, value } of properties.filter((property) => property.id.startsWith('custom.'))) {
      const custom = { [id.slice('custom.'.length)]: value };
      yield [`${where}, override of ${id}`, `Custom['${panel.type}']`, custom];
    }
  }
}

function compile(name, text) {
  const options = {
    noEmit: true,
    strict: true,
    skipLibCheck: true,
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.ESNext,
    // the published files import each other by bare name; their folders are not among the packages' exports
    moduleResolution: ts.ModuleResolutionKind.Bundler,
    resolvePackageJsonExports: false,
    types: [],
  };
  const host = ts.createCompilerHost(options);
  const { getSourceFile, fileExists, readFile } = host;
  host.getSourceFile = (file, ...rest) =>
    file === name ? ts.createSourceFile(file, text, ts.ScriptTarget.ES2022) : getSourceFile(file, ...rest);
  host.fileExists = (file) => file === name || fileExists(file);
  host.readFile = (file) => (file === name ? text : readFile(file));
  const program = ts.createProgram([name], options, host);
  return { program, problems: ts.getPreEmitDiagnostics(program).filter(({ file }) => file?.fileName === name) };
}

function check(release, boards) {
  const places = [];
  const lines = [TYPES[release], PLAIN];
  for (const [where, type, value] of boards.flatMap((board) => [...parts(board)])) {
    lines.push(`export const part${places.length}: Plain<${type}> = ${JSON.stringify(value)};`);
    places.push(where);
  }
  const name = path.join(__dirname, `dashboards-${release}.ts`);
  const { problems } = compile(name, lines.join('\n'));
  return problems.map((problem) => {
    const text = ts.flattenDiagnosticMessageText(problem.messageText, ' ');
    const line = problem.file.text.slice(0, problem.start).split('\n').at(-1);
    const part = /^export const part(\d+)/.exec(line);
    return `Grafana ${release}: ${part ? places[part[1]] : 'types'}: ${text}`;
  });
}

async function main() {
  const chunks = [];
  for await (const chunk of process.stdin) {
    chunks.push(chunk);
  }
  const boards = JSON.parse(Buffer.concat(chunks).toString());
  const problems = Object.keys(TYPES).flatMap((release) => check(release, boards));
  problems.forEach((problem) => console.log(problem));
  process.exitCode = problems.length > 0 ? 1 : 0;
}

main();
