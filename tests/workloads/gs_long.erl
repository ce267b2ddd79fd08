%% SPDX-License-Identifier: Apache-2.0
%% A planted server whose replies other processes give: nine of ten after 20 ms, one after 1.2 s to
%% 2.4 s.
-module(gs_long).
-behaviour(gen_server).
-export([start/0, init/1, handle_call/3, handle_cast/2]).

start() -> gen_server:start({local, ?MODULE}, ?MODULE, [], []).

init([]) -> {ok, 1}.

handle_call({later, Sent}, From, Number) ->
    Taken = gs_times:taken(?MODULE, Sent),
    Lasts = case Number rem 10 of
        0 -> 1200 + rand:uniform(1200);
        _ -> 20
    end,
    spawn(fun() ->
        timer:sleep(Lasts),
        gs_times:served(?MODULE, Taken),
        gen_server:reply(From, ok)
    end),
    {noreply, Number + 1}.

handle_cast(_, Number) -> {noreply, Number}.
