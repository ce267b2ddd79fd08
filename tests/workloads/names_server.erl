%% SPDX-License-Identifier: Apache-2.0
%% A gen_server that keeps what it is given; "hibernate" as its state makes it hibernate.
-module(names_server).
-behaviour(gen_server).
-export([start_link/1, init/1, handle_call/3, handle_cast/2, handle_info/2]).

start_link(State) -> gen_server:start_link(?MODULE, State, []).

init(hibernate) -> {ok, hibernate, hibernate};
init({busy, Name}) -> register(Name, self()), {ok, busy};
init(State) -> {ok, State}.

handle_call({sleep, Function}, _From, State) -> {reply, Function(), State};
handle_call(_Request, _From, State) -> {reply, ok, State}.
handle_cast(_Request, State) -> {noreply, State}.
handle_info(_Message, State) -> {noreply, State}.
