%% SPDX-License-Identifier: Apache-2.0
%% Times of planted servers, by module: microseconds in callbacks, callbacks, and microseconds that
%% callers waited for them.
-module(gs_times).
-export([new/0, busy/2, call/2, read/1]).

new() -> persistent_term:put(?MODULE, counters:new(64, [])).

place(gs_slow) -> 1;
place(gs_chain) -> 4;
place(gs_backend) -> 7;
place(gs_state) -> 10.

busy(Module, Work) ->
    T0 = erlang:monotonic_time(microsecond),
    Result = Work(),
    add(Module, 0, erlang:monotonic_time(microsecond) - T0),
    add(Module, 1, 1),
    Result.

call(Module, Call) ->
    T0 = erlang:monotonic_time(microsecond),
    Result = Call(),
    add(Module, 2, erlang:monotonic_time(microsecond) - T0),
    Result.

add(Module, Which, Value) ->
    counters:add(persistent_term:get(?MODULE), place(Module) + Which, Value).

read(Module) ->
    [counters:get(persistent_term:get(?MODULE), place(Module) + Which) || Which <- [0, 1, 2]].
