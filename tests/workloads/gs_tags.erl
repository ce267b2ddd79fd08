%% SPDX-License-Identifier: Apache-2.0
%% A planted server of requests of many tags, of which the first takes longest.
-module(gs_tags).
-behaviour(gen_server).
-export([init/1, handle_call/3, handle_cast/2]).

init([]) -> {ok, none}.

handle_call({tag_1, _}, _From, State) ->
    timer:sleep(2),
    {reply, ok, State};
handle_call(_, _From, State) ->
    {reply, ok, State}.

handle_cast({tag_1, _}, State) -> {noreply, State}.
