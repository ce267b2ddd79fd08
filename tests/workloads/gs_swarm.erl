%% SPDX-License-Identifier: Apache-2.0
%% Planted servers of many modules that reply at once, and callers without a pause: what they count
%% and time themselves must take far less than a call.
-module(gs_swarm).
-behaviour(gen_server).
-export([start/2, reset/0, text/0]).
-export([caller/2, init/1, handle_call/3, handle_cast/2]).

%% One of so many calls is timed.
-define(EVERY, 16).

%% Modules, each with a server and so many callers.
start(Modules, Callers) ->
    persistent_term:put(?MODULE, counters:new(Modules, [write_concurrency])),
    [start_server(Number, Callers) || Number <- lists:seq(1, Modules)],
    ok.

start_server(Number, Callers) ->
    Mfa = {list_to_atom("gs_swarm_" ++ integer_to_list(Number)), init, 1},
    Server = proc_lib:spawn(fun() ->
        put('$initial_call', Mfa),
        gen_server:enter_loop(?MODULE, [], none)
    end),
    [spawn(?MODULE, caller, [Server, Number]) || _ <- lists:seq(1, Callers)].

reset() ->
    Counts = persistent_term:get(?MODULE),
    #{size := Modules} = counters:info(Counts),
    [counters:put(Counts, Number, 0) || Number <- lists:seq(1, Modules)].

text() ->
    Counts = persistent_term:get(?MODULE),
    #{size := Modules} = counters:info(Counts),
    [io_lib:format(" gs_swarm_~b:answered=~b", [Number, counters:get(Counts, Number)])
        || Number <- lists:seq(1, Modules)].

caller(Server, Number) ->
    caller(Server, Number, persistent_term:get(?MODULE), 0).

caller(Server, Number, Counts, 0) ->
    T0 = gs_times:now(),
    ok = gen_server:call(Server, nothing),
    gs_times:time(gs_swarm, call, gs_times:now() - T0),
    counters:add(Counts, Number, 1),
    caller(Server, Number, Counts, ?EVERY);
caller(Server, Number, Counts, Left) ->
    ok = gen_server:call(Server, nothing),
    counters:add(Counts, Number, 1),
    caller(Server, Number, Counts, Left - 1).

init([]) -> {ok, none}.

handle_call(nothing, _From, State) -> {reply, ok, State}.

handle_cast(_, State) -> {noreply, State}.
