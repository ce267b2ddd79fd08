%% SPDX-License-Identifier: Apache-2.0
%% A planted server that replies to no call: it passes calls on, or calls others itself.
-module(gs_pass).
-behaviour(gen_server).
-export([start/0, init/1, handle_call/3, handle_cast/2]).

start() -> gen_server:start({local, ?MODULE}, ?MODULE, [], []).

init([]) -> {ok, none}.

handle_call({pass, Number}, From, State) when Number rem 2 =:= 0 ->
    gs_backend ! {'$gen_call', From, {sleep, 5}},
    {noreply, State};
handle_call({pass, _}, From, State) ->
    gs_defer ! {'$gen_call', From, {later, gs_times:now()}},
    {noreply, State};
handle_call({inner, N}, _From, State) ->
    Fast = whereis(gs_fast),
    [ok = gen_server:call(Fast, {nothing, gs_times:now()}, infinity) || _ <- lists:seq(1, N)],
    {reply, ok, State}.

handle_cast(_, State) -> {noreply, State}.
