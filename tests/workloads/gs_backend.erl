%% SPDX-License-Identifier: Apache-2.0
%% A planted server that sleeps 5 ms in each call.
-module(gs_backend).
-behaviour(gen_server).
-export([start/0, init/1, handle_call/3, handle_cast/2]).

start() -> gen_server:start({local, ?MODULE}, ?MODULE, [], []).

init([]) -> {ok, none}.

handle_call({sleep, _}, _From, State) ->
    gs_times:busy(?MODULE, fun() -> timer:sleep(5) end),
    {reply, ok, State}.

handle_cast(_, State) -> {noreply, State}.
