%% SPDX-License-Identifier: Apache-2.0
%% Processes that wait for what never comes, and servers that live for 4 to 6 s: each that ends
%% begins another one. A server works half of its time.
%%
%%   erl -run gs_churn start PROCESSES SERVERS
-module(gs_churn).
-behaviour(gen_server).
-export([start/1]).
-export([main/2, init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-define(WORK, 400).

start(Numbers) -> spawn(?MODULE, main, [list_to_integer(Number) || Number <- Numbers]).

main(Processes, Servers) ->
    [spawn(gs_host, wait, []) || _ <- lists:seq(1, Processes)],
    [{ok, _} = gen_server:start(?MODULE, rand:uniform(6000), []) || _ <- lists:seq(1, Servers)],
    io:format("ready~n"),
    gs_host:wait().

init(Lives) ->
    erlang:send_after(Lives, self(), stop),
    erlang:send_after(rand:uniform(2 * ?WORK), self(), work),
    {ok, none}.

handle_call(ping, _From, State) -> {reply, ok, State}.

handle_cast(_, State) -> {noreply, State}.

handle_info(work, State) ->
    timer:sleep(?WORK),
    erlang:send_after(?WORK, self(), work),
    {noreply, State};
handle_info(stop, State) ->
    {stop, normal, State}.

terminate(_, _) -> gen_server:start(?MODULE, 4000 + rand:uniform(2000), []).
