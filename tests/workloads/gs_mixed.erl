%% SPDX-License-Identifier: Apache-2.0
%% A planted server that sleeps 1 ms in a call, in one of ten 50 ms.
-module(gs_mixed).
-behaviour(gen_server).
-export([start/0, init/1, handle_call/3, handle_cast/2]).

start() -> gen_server:start({local, ?MODULE}, ?MODULE, [], []).

init([]) -> {ok, 0}.

handle_call({work, Sent}, _From, Number) ->
    Taken = gs_times:taken(?MODULE, Sent),
    timer:sleep(case Number rem 10 of 0 -> 50; _ -> 1 end),
    gs_times:served(?MODULE, Taken),
    {reply, ok, Number + 1}.

handle_cast(_, State) -> {noreply, State}.
