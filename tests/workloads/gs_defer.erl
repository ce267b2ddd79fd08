%% SPDX-License-Identifier: Apache-2.0
%% A planted server that defers its replies: another process gives them after 15 ms.
-module(gs_defer).
-behaviour(gen_server).
-export([start/0, init/1, handle_call/3, handle_cast/2]).

start() -> gen_server:start({local, ?MODULE}, ?MODULE, [], []).

init([]) -> {ok, none}.

handle_call({later, Sent}, From, State) ->
    Taken = gs_times:taken(?MODULE, Sent),
    spawn(fun() ->
        timer:sleep(15),
        gs_times:served(?MODULE, Taken),
        gen_server:reply(From, ok)
    end),
    {noreply, State}.

handle_cast(_, State) -> {noreply, State}.
