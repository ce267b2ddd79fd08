%% SPDX-License-Identifier: Apache-2.0
%% Many processes that wait for what never comes, and some servers of 20 modules among them that
%% nobody calls; then all of gs_main.
%%
%%   erl +P 2000000 -run gs_host start PROCESSES SERVERS
-module(gs_host).
-behaviour(gen_server).
-export([start/1]).
-export([main/2, wait/0, server/1, init/1, handle_call/3, handle_cast/2]).

-define(MODULES, 20).

start(Numbers) -> spawn(?MODULE, main, [list_to_integer(Number) || Number <- Numbers]).

%% Old and young processes are of both kinds.
main(Processes, Servers) ->
    Each = max(1, (Processes + Servers) div max(1, Servers)),
    [plant(Number, Each) || Number <- lists:seq(1, Processes + Servers)],
    gs_main:main().

plant(Number, Each) when Number rem Each =:= 0 ->
    Module = integer_to_list(1 + Number div Each rem ?MODULES),
    proc_lib:spawn(?MODULE, server, [list_to_atom("gs_host_" ++ Module)]);
plant(_, _) ->
    spawn(?MODULE, wait, []).

wait() -> receive never -> wait() end.

server(Module) ->
    put('$initial_call', {Module, init, 1}),
    gen_server:enter_loop(?MODULE, [], none).

init([]) -> {ok, none}.

handle_call(ping, _From, State) -> {reply, ok, State}.

handle_cast(_, State) -> {noreply, State}.
