%% SPDX-License-Identifier: Apache-2.0
%% A planted state machine that sleeps 10 ms in each call; calls of state machines have no timeout.
-module(gs_state).
-behaviour(gen_statem).
-export([start/0, init/1, callback_mode/0, handle_event/4]).

start() -> gen_statem:start({local, ?MODULE}, ?MODULE, [], []).

init([]) -> {ok, ready, none}.

callback_mode() -> handle_event_function.

handle_event({call, From}, work, ready, _Data) ->
    gs_times:busy(?MODULE, fun() -> timer:sleep(10) end),
    {keep_state_and_data, [{reply, From, ok}]}.
