%% SPDX-License-Identifier: Apache-2.0
%% A planted server that sleeps 3 ms for each cast.
-module(gs_cast).
-behaviour(gen_server).
-export([start/0, init/1, handle_call/3, handle_cast/2]).

start() -> gen_server:start({local, ?MODULE}, ?MODULE, [], []).

init([]) -> {ok, none}.

handle_call(sync, _From, State) -> {reply, ok, State}.

handle_cast({work, Sent}, State) ->
    Taken = gs_times:taken(?MODULE, Sent),
    timer:sleep(3),
    gs_times:served(?MODULE, Taken),
    {noreply, State}.
