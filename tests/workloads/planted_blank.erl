%% SPDX-License-Identifier: Apache-2.0
%% A module to load again and again.
-module(planted_blank).
-export([nothing/0]).

nothing() -> ok.
