// SPDX-License-Identifier: Apache-2.0
// Draws one dashboard with Grafana's own components, on its grid.
import {
  DataFrame,
  FieldConfigOptionsRegistry,
  TimeRange,
  VizOrientation,
  applyFieldOverrides,
  createTheme,
  dateTime,
  displayNameOverrideProcessor,
  getDisplayValueAlignmentFactors,
  getFieldDisplayValues,
  renderMarkdown,
  standardTransformers,
  standardTransformersRegistry,
  transformDataFrame,
} from '@grafana/data';
import { BarGauge, BigValue, PanelChrome, Table, TimeSeries, VizRepeater } from '@grafana/ui';
import { Component, ReactNode, useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';
import { firstValueFrom } from 'rxjs';
import { Series, frames } from './frames';

/** As it is; for counting, without the lines of thresholds; and that without the data. */
type Mode = 'shown' | 'counted' | 'blank';
interface Scene {
  board: any;
  answers: Record<string, Series[]>;
  start: number;
  end: number;
}
interface Drawn {
  panel: any;
  data: DataFrame[];
  width: number;
  height: number;
  timeRange: TimeRange;
}

const UNIT = 38; // of the grid, in pixels
const WIDTH = 1600;
const theme = createTheme({ colors: { mode: 'dark' } });
/** Of Grafana's variables the labels of a field. */
const replaceVariables = (text: string, scoped?: any) =>
  text.replace(
    /\$\{__field\.labels\.(\w+)\}/g,
    (_, name) => scoped?.__dataContext?.value.field.labels?.[name] ?? ''
  );

standardTransformersRegistry.setInit(() =>
  [
    standardTransformers.mergeTransformer,
    standardTransformers.organizeFieldsTransformer,
    standardTransformers.filterFieldsByNameTransformer,
  ].map((one: any) => ({
    id: one.id,
    name: one.name,
    transformation: one,
    editor: () => null,
    imageDark: '',
    imageLight: '',
  }))
);

/** The properties of fields that the dashboards set; Grafana registers them with its editors. */
const property = (id: string) => ({
  id,
  path: id,
  name: id,
  editor: () => null,
  override: () => null,
  process: (value: any) => value,
  shouldApply: () => true,
});
const custom = (id: string) => ({ ...property(id), id: `custom.${id}`, path: id, isCustom: true });
const fieldConfigRegistry = new FieldConfigOptionsRegistry(() => [
  ...['unit', 'min', 'max', 'decimals', 'noValue', 'color', 'thresholds', 'mappings'].map(property),
  {
    ...property('displayName'),
    process: displayNameOverrideProcessor,
    settings: { expandTemplateVars: true },
  },
  ...['lineStyle', 'cellOptions', 'minWidth'].map(custom),
]);

function configured(panel: any, data: DataFrame[], mode: Mode): DataFrame[] {
  const fieldConfig = panel.fieldConfig ?? { defaults: {}, overrides: [] };
  const defaults = { ...fieldConfig.defaults.custom };
  if (mode !== 'shown') {
    delete defaults.thresholdsStyle;
  }
  const done = applyFieldOverrides({ data, fieldConfig, fieldConfigRegistry, replaceVariables, theme });
  for (const field of done.flatMap((frame) => frame.fields)) {
    field.config.custom = { ...defaults, ...field.config.custom };
  }
  return done;
}

function Values({ panel, data, width, height, timeRange }: Drawn) {
  const sparkline = panel.options.graphMode === 'area';
  const getValues = () =>
    getFieldDisplayValues({
      data,
      fieldConfig: panel.fieldConfig,
      reduceOptions: panel.options.reduceOptions,
      replaceVariables,
      sparkline,
      theme,
    }).map((one) => ({ ...one, sparkline: one.sparkline && { ...one.sparkline, timeRange } }));
  const bars = panel.type === 'bargauge';
  return (
    <VizRepeater
      getValues={getValues}
      getAlignmentFactors={getDisplayValueAlignmentFactors as any}
      source={data}
      renderCounter={0}
      width={width}
      height={height}
      autoGrid={!bars}
      minVizHeight={panel.options.minVizHeight}
      maxVizHeight={panel.options.maxVizHeight}
      orientation={bars ? VizOrientation.Horizontal : VizOrientation.Auto}
      renderValue={({ value, alignmentFactors, count, ...size }: any) =>
        bars ? (
          <BarGauge
            value={value.display}
            field={value.field}
            display={value.view?.getFieldDisplayProcessor(value.colIndex)}
            alignmentFactors={alignmentFactors}
            theme={theme}
            itemSpacing={8}
            {...panel.options}
            {...size}
            orientation={VizOrientation.Horizontal}
          />
        ) : (
          <BigValue
            value={value.display}
            sparkline={value.sparkline}
            alignmentFactors={alignmentFactors}
            count={count}
            theme={theme}
            colorMode={panel.options.colorMode}
            graphMode={panel.options.graphMode}
            textMode={panel.options.textMode}
            text={panel.options.text}
            {...size}
          />
        )
      }
    />
  );
}

const KINDS: Record<string, (drawn: Drawn) => ReactNode> = {
  timeseries: ({ panel, data, width, height, timeRange }) => (
    <TimeSeries
      frames={data}
      structureRev={1}
      width={width}
      height={height}
      timeRange={timeRange}
      timeZone="utc"
      legend={panel.options.legend}
      options={panel.options}
    />
  ),
  stat: (drawn) => <Values {...drawn} />,
  bargauge: (drawn) => <Values {...drawn} />,
  table: ({ data, width, height }) => <Table data={data[0]} width={width} height={height} />,
  text: ({ panel }) => (
    <div className="markdown-html" dangerouslySetInnerHTML={{ __html: renderMarkdown(panel.options.content) }} />
  ),
};

/** Says what went wrong in a panel, in its place. */
class Guard extends Component<{ children: ReactNode }, { error?: Error }> {
  state: { error?: Error } = {};
  static getDerivedStateFromError(error: Error) {
    return { error };
  }
  render() {
    return this.state.error ? <b>failed: {String(this.state.error.stack)}</b> : this.props.children;
  }
}

async function data(scene: Scene, panel: any, mode: Mode): Promise<DataFrame[]> {
  const raw = (panel.targets ?? []).flatMap((target: any) =>
    frames(target, scene.answers[`${panel.id}${target.refId}`], mode === 'blank')
  );
  const shaped = await firstValueFrom(transformDataFrame(panel.transformations ?? [], raw));
  return configured(panel, shaped, mode);
}

function place({ x, y, w, h }: any) {
  const column = WIDTH / 24;
  return { left: x * column, top: y * UNIT, width: w * column - 8, height: h * UNIT - 8 };
}

interface Wanted {
  scene: Scene;
  mode: Mode;
  ready: () => void;
  failed: (error: Error) => void;
}

function Board({ scene, mode, ready, failed }: Wanted) {
  const panels = scene.board.panels;
  const [found, setFound] = useState<Record<number, DataFrame[]>>();
  useEffect(() => {
    const drawn = panels.filter((panel: any) => KINDS[panel.type]);
    Promise.all(drawn.map(async (panel: any) => [panel.id, await data(scene, panel, mode)])).then(
      (pairs) => setFound(Object.fromEntries(pairs)),
      failed
    );
  }, []);
  useEffect(() => {
    if (found) {
      requestAnimationFrame(() => setTimeout(ready, 300)); // the sparklines come a moment later
    }
  }, [found]);
  const [from, to] = [dateTime(scene.start * 1000), dateTime(scene.end * 1000)];
  const timeRange = { from, to, raw: { from, to } };
  return (
    <>
      {panels.map((panel: any) => {
        const at = place(panel.gridPos);
        const box = { ...at, position: 'absolute' as const };
        if (panel.type === 'row') {
          return (
            <h4 key={panel.id} style={{ ...box, margin: 0 }}>
              {panel.title}
            </h4>
          );
        }
        return (
          <div key={panel.id} id={`panel-${panel.id}`} style={box}>
            <PanelChrome
              title={panel.title}
              description={panel.description}
              width={at.width}
              height={at.height}
            >
              {(width: number, height: number) => (
                <Guard>
                  {found?.[panel.id] &&
                    KINDS[panel.type]({ panel, data: found[panel.id], width, height, timeRange })}
                </Guard>
              )}
            </PanelChrome>
          </div>
        );
      })}
    </>
  );
}

/** Draw *scene*; done when all is on the page. */
(window as any).draw = (scene: Scene, mode: Mode) =>
  new Promise<void>((resolve, reject) => {
    const bottom = Math.max(...scene.board.panels.map(({ gridPos: { y, h } }: any) => y + h));
    document.body.innerHTML = '';
    document.body.style.cssText =
      `margin: 8px; width: ${WIDTH}px; height: ${bottom * UNIT}px; position: relative;` +
      `background: ${theme.colors.background.canvas}; color: ${theme.colors.text.primary};` +
      `font-family: ${theme.typography.fontFamily}; font-size: 14px; box-sizing: border-box`;
    const style = document.createElement('style');
    style.textContent =
      '* { box-sizing: border-box } button { all: unset; color: inherit; font: inherit }' +
      'td, th { text-align: left; padding: 3px 16px 3px 0 } a { color: #6e9fff }';
    document.body.appendChild(style);
    const root = document.body.appendChild(document.createElement('div'));
    createRoot(root).render(<Board scene={scene} mode={mode} ready={resolve} failed={reject} />);
  });
