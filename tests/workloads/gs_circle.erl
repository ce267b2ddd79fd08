%% SPDX-License-Identifier: Apache-2.0
%% Planted servers that call each other in a circle, on command.
-module(gs_circle).
-behaviour(gen_server).
-export([start/1, init/1, handle_call/3, handle_cast/2]).

start(Name) -> gen_server:start({local, Name}, ?MODULE, [], []).

init([]) -> {ok, none}.

handle_call(ping, _From, State) -> {reply, pong, State}.

handle_cast({ask, Next}, State) ->
    _ = gen_server:call(Next, ping, infinity),
    {noreply, State}.
