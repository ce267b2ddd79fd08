%% SPDX-License-Identifier: Apache-2.0
%% A planted server of plain messages, from processes and from timers, that calls another server
%% for each.
-module(gs_info).
-behaviour(gen_server).
-export([start/0, init/1, handle_call/3, handle_cast/2, handle_info/2]).

start() -> gen_server:start({local, ?MODULE}, ?MODULE, [], []).

init([]) -> {ok, none}.

handle_call(sync, _From, State) -> {reply, ok, State}.

handle_cast(_, State) -> {noreply, State}.

handle_info({work, Sent}, State) ->
    Taken = gs_times:taken(?MODULE, Sent),
    ok = gs_times:call(gs_fast, fun() -> gen_server:call(gs_fast, {work, gs_times:now()}) end),
    timer:sleep(2),
    gs_times:served(?MODULE, Taken),
    {noreply, State}.
