%% SPDX-License-Identifier: Apache-2.0
%% A planted server that calls another one within each of its calls.
-module(gs_chain).
-behaviour(gen_server).
-export([start/0, init/1, handle_call/3, handle_cast/2]).

start() -> gen_server:start({local, ?MODULE}, ?MODULE, [], []).

init([]) -> {ok, none}.

handle_call(ask, _From, State) ->
    gs_times:busy(?MODULE, fun() ->
        gs_times:call(gs_backend, fun() -> gen_server:call(gs_backend, {sleep, 5}) end)
    end),
    {reply, ok, State}.

handle_cast(_, State) -> {noreply, State}.
