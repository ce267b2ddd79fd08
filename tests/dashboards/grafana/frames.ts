// SPDX-License-Identifier: Apache-2.0
// Prometheus' answers as Grafana's data frames, the way its data source makes them.
import { DataFrame, FieldType, createDataFrame } from '@grafana/data';

type Sample = [number, string];
export interface Series {
  metric: Record<string, string>;
  value?: Sample;
  values?: Sample[];
}
export interface Target {
  refId: string;
  legendFormat: string;
  format?: string;
}

const number = (text: string) => (text === 'NaN' ? NaN : Number(text.replace('Inf', 'Infinity')));

const legend = (target: Target, labels: Record<string, string>) =>
  target.legendFormat.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? '');

/** One frame per series; with *blank*, the same without its values. */
function timeSeries(target: Target, series: Series, blank: boolean): DataFrame {
  const samples = series.values ?? [series.value!];
  return createDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: samples.map(([at]) => at * 1000) },
      {
        name: 'Value',
        type: FieldType.number,
        labels: series.metric,
        config: { displayNameFromDS: legend(target, series.metric) },
        values: samples.map(([, text]) => (blank ? null : number(text))),
      },
    ],
  });
}

/** One frame of all series, a column per label. */
function table(target: Target, answer: Series[], blank: boolean): DataFrame {
  const rows = blank ? [] : answer;
  const names = [...new Set(rows.flatMap((one) => Object.keys(one.metric)))].sort();
  return createDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: rows.map((one) => one.value![0] * 1000) },
      ...names.map((name) => ({
        name,
        type: FieldType.string,
        values: rows.map((one) => one.metric[name] ?? ''),
      })),
      {
        name: `Value #${target.refId}`,
        type: FieldType.number,
        values: rows.map((one) => number(one.value![1])),
      },
    ],
  });
}

export function frames(target: Target, answer: Series[], blank: boolean): DataFrame[] {
  return target.format === 'table'
    ? [table(target, answer, blank)]
    : answer.map((series) => timeSeries(target, series, blank));
}
