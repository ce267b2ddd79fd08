%% SPDX-License-Identifier: Apache-2.0
%% A planted server that ends in one call of twenty, and is started again at once.
-module(gs_crash).
-behaviour(gen_server).
-export([start/0, init/1, handle_call/3, handle_cast/2]).

%% The process that starts it again.
start() ->
    Parent = self(),
    Keeper = spawn_link(fun() ->
        process_flag(trap_exit, true),
        {ok, _} = again(),
        Parent ! {self(), started},
        keep()
    end),
    receive {Keeper, started} -> {ok, Keeper} end.

keep() ->
    receive {'EXIT', _, _} -> {ok, _} = again() end,
    keep().

again() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

init([]) -> {ok, none}.

handle_call({perhaps, Sent, Number}, _From, State) ->
    Taken = gs_times:taken(?MODULE, Sent),
    Number rem 20 =:= 0 andalso exit(planted),
    timer:sleep(2),
    gs_times:served(?MODULE, Taken),
    {reply, ok, State}.

handle_cast(_, State) -> {noreply, State}.
