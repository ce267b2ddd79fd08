%% SPDX-License-Identifier: Apache-2.0
%% A gen_statem with one state.
-module(names_statem).
-behaviour(gen_statem).
-export([start_link/0, init/1, callback_mode/0, idle/3]).

start_link() -> gen_statem:start_link(?MODULE, [], []).
init([]) -> {ok, idle, []}.
callback_mode() -> state_functions.
idle(_Type, _Event, Data) -> {keep_state, Data}.
