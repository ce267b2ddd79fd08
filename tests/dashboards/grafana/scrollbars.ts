// SPDX-License-Identifier: Apache-2.0
// The table's scroll bars: a CommonJS package whose default export esbuild takes for the whole module.
export { Scrollbars as default } from 'react-custom-scrollbars-2';
