%% SPDX-License-Identifier: Apache-2.0
%% A planted server that takes 30 ms for each call, which is more than its callers wait.
-module(gs_late).
-behaviour(gen_server).
-export([start/0, init/1, handle_call/3, handle_cast/2]).

start() -> gen_server:start({local, ?MODULE}, ?MODULE, [], []).

init([]) -> {ok, none}.

handle_call({sleep, Sent}, _From, State) ->
    Taken = gs_times:taken(?MODULE, Sent),
    Taken - Sent > 10000 andalso gs_times:count(?MODULE, abandoned),
    timer:sleep(30),
    gs_times:served(?MODULE, Taken),
    {reply, ok, State}.

handle_cast(_, State) -> {noreply, State}.
