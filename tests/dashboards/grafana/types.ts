// SPDX-License-Identifier: Apache-2.0
// What Grafana's published types say of a dashboard's JSON. Its schema has `any` where the panels'
// options and the data source's queries go: here each kind of panel has its own.
import type {
  AnnotationQuery,
  Dashboard,
  FieldConfig,
  FieldConfigSource,
  Panel,
  RowPanel,
} from '@grafana/schema/dist/types/raw/dashboard/x/dashboard_types.gen';
import type * as bargauge from '@grafana/schema/dist/types/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen';
import type * as heatmap from '@grafana/schema/dist/types/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type * as stat from '@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as table from '@grafana/schema/dist/types/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type * as text from '@grafana/schema/dist/types/raw/composable/text/panelcfg/x/TextPanelCfg_types.gen';
import type * as timeseries from '@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

/** A type as JSON has it: its enums are their values. */
type Json<T> = T extends string
  ? `${T}`
  : T extends number
    ? `${T}` extends `${infer N extends number}`
      ? N
      : never
    : T extends (infer E)[]
      ? Json<E>[]
      : T extends object
        ? { [K in keyof T]: Json<T[K]> }
        : T;

/** Of the Prometheus data source, whose types are not published as a package. */
interface Query {
  refId: string;
  expr: string;
  legendFormat: string;
  datasource: { type: 'prometheus'; uid: string };
  editorMode?: 'code' | 'builder';
  format?: 'time_series' | 'table' | 'heatmap';
  instant?: boolean;
  range?: boolean;
}

type Common = Omit<Json<Panel>, 'type' | 'options' | 'fieldConfig' | 'targets'>;
type Fields<Custom> = Omit<Json<FieldConfigSource>, 'defaults'> & {
  defaults: Omit<Json<FieldConfig>, 'custom'> & { custom?: Partial<Custom> };
};

interface Of<Type extends string, Options, Custom> extends Common {
  type: Type;
  options?: Partial<Json<Options>>;
  fieldConfig: Fields<Json<Custom>>;
  targets: Query[];
}

type AnyPanel =
  | Of<'bargauge', bargauge.Options, {}>
  | Of<'heatmap', heatmap.Options, heatmap.FieldConfig>
  | Of<'stat', stat.Options, {}>
  | Of<'table', table.Options, table.FieldConfig>
  | Of<'timeseries', timeseries.Options, timeseries.FieldConfig>
  | (Omit<Of<'text', text.Options, {}>, 'targets' | 'fieldConfig'> & {
      targets?: Query[];
      fieldConfig?: Fields<{}>;
    })
  | (Omit<Json<RowPanel>, 'panels'> & { panels: AnyPanel[] });

export type Board = Omit<Json<Dashboard>, 'panels' | 'annotations'> & {
  panels: AnyPanel[];
  annotations: { list: (Json<AnnotationQuery> & { expr: string; titleFormat: string })[] };
};
