%% SPDX-License-Identifier: Apache-2.0
%% A gen_server whose code is replaced while it runs; each call counts itself.
-module(called_server).
-behaviour(gen_server).
-export([start_link/0, init/1, handle_call/3, handle_cast/2]).

start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

init([]) -> {ok, #{count => 0}}.

handle_call({add, Number}, _From, #{count := Count}) ->
    counters:add(persistent_term:get(called), 1, 1),
    {reply, Number, #{count => Count + Number}}.

handle_cast(_, State) -> {noreply, State}.
