%% SPDX-License-Identifier: Apache-2.0
%% A gen_statem with state functions, which call each other.
-module(states).
-behaviour(gen_statem).
-export([start/0, init/1, callback_mode/0, idle/3, busy/3, terminate/3]).

start() -> gen_statem:start(?MODULE, 1, []).

init(N) -> {ok, idle, N}.

callback_mode() -> [state_functions, state_enter].

idle(enter, Old, N) -> {keep_state, N, [{state_timeout, infinity, Old}]};
idle({call, From}, work, N) -> {next_state, busy, N + 1, [{reply, From, {idle, N}}]};
idle(Type, Event, N) -> busy(Type, Event, N).

busy(enter, _, _) -> keep_state_and_data;
busy({call, From}, work, N) when N > 3 -> {stop_and_reply, normal, [{reply, From, done}]};
busy({call, _} = Type, work, N) -> idle(Type, work, N);
busy({call, From}, Other, _) -> answered(From, Other);
busy(_, Other, _) -> error({unexpected, Other}).

answered(From, Other) -> {keep_state_and_data, [{reply, From, {other, Other}}]}.

terminate(Reason, State, N) -> persistent_term:put(states, {Reason, State, N}).
