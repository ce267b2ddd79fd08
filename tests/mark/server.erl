%% SPDX-License-Identifier: Apache-2.0
%% A gen_server that answers by tail calls of functions, other modules and funs.
-module(server).
-behaviour(gen_server).
-export([start/0, init/1, handle_call/3, handle_cast/2, handle_info/2, handle_continue/2, terminate/2]).

start() -> gen_server:start(?MODULE, [], []).

init(Items) -> {ok, Items, {continue, first}}.

handle_continue(first, Items) -> noreply([first | Items]).

handle_call(items, _, Items) -> {reply, Items, Items};
handle_call({add, X}, From, Items) -> reply(From, X, Items);
handle_call({by, Module, Function}, _, Items) -> Module:Function({reply, by, Items});
handle_call({apply, Fun}, _, Items) -> Fun(Items);
handle_call(sum, _, Items) -> {reply, lists:sum(Items), Items};
handle_call({loop, 0}, _, Items) -> {reply, process_info(self(), stack_size), Items};
handle_call({loop, N}, From, Items) -> handle_call({loop, N - 1}, From, Items);
handle_call(crash, From, Items) -> crash(From, Items).

handle_cast({add, X}, Items) -> noreply([X | Items]);
handle_cast(X, Items) -> handle_info(X, Items).

handle_info(drop, [_ | Items]) -> noreply(Items);
handle_info(_, Items) -> {noreply, Items}.

terminate(_, _) -> ok.

noreply(Items) -> {noreply, Items}.

reply(_, X, Items) -> {reply, length(Items), [X | Items]}.

crash(_, [Item | _]) ->
    _ = Item + not_a_number,
    ok.
